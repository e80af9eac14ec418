"""People that are drawn in another style, and the search for them among others in that style."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from imprompt.evaluation.judges.characters import CharacterJudge
from imprompt.lab.figures.figure import Values
from imprompt.lab.figures.measures import Pictures
from imprompt.lab.making.captions import write_style_phrase
from imprompt.lab.making.characters import Character, change_attributes, has_word, sample_character
from imprompt.lab.making.drawing import draw
from imprompt.lab.making.views import IDENTITY, sample_person
from imprompt.lab.making.vocabulary import load_vocabulary
from imprompt.lab.suite.scoring import Galleries, read_pictures
from imprompt.lab.suite.subjects import Subject

FREE = ("expression", "ground")
"""The attributes that do not make a person; everybody in a gallery has those of the image prompt."""

LEAST_ATTRIBUTES = 4
"""The least number of attributes that make a person and are drawn in the asked style."""


@dataclass(frozen=True)
class PersonInStyle:
    """A person in one style, which is the image prompt, and the same person in the style that is asked for.

    Attributes:
        subject: the image prompt
        target: the same person in the other style
    """

    subject: Subject
    target: Character

    @property
    def text(self) -> str:
        """The prompt that asks for the style."""
        return write_style_phrase(self.target)

    @property
    def free_attributes(self) -> dict[str, str]:
        """The words of `FREE` that the image prompt shows and the other style can draw."""
        return find_free_attributes(self.subject.character, self.target.style)


def find_free_attributes(character: Character, style: str) -> dict[str, str]:
    """Return a character's words of `FREE` that a style can draw."""
    known = load_vocabulary().styles[style]
    words = {name: word for name in FREE if (word := character.get(name)) is not None}
    return {name: word for name, word in words.items() if has_word(known, name, word)}


def sample_people(count: int, seed: int = 0) -> list[PersonInStyle]:
    """Return the first `count` people of combinations that no part of the model has seen.

    Args:
        count: number of people
        seed: of the people; it is not that of the training data
    """
    people: list[PersonInStyle] = []
    place = 0
    while len(people) < count:
        rng = random.Random(f"{seed}/suite/people/{place}")
        place += 1
        first, second, *_ = sample_person(rng, "combinations")
        if (
            first.style == second.style
            or sum(name in second.attributes for name in IDENTITY) < LEAST_ATTRIBUTES
        ):
            continue
        target = change_attributes(second, find_free_attributes(first, second.style), rng)
        people.append(PersonInStyle(Subject(len(people), "combinations", first, draw(first)), target))
    return people


class PeopleGalleries:
    """For each person, other characters in the asked style with the image prompt's expression and ground.

    Args:
        judge: embeds the drawings
        people: who are searched
        size: number of drawings among which each is searched, the person's own included
    """

    def __init__(self, judge: CharacterJudge, people: Sequence[PersonInStyle], size: int) -> None:
        self.judge, self.people = judge, people
        self.targets = read_pictures(judge, [draw(person.target) for person in people]).embeddings
        others = {str(person.subject.number): draw_others(person, size - 1) for person in people}
        self.galleries = Galleries(judge, others)

    def measure_found(self, pictures: Pictures) -> Values:
        """Return 1 where the person's own drawing is nearest to the image, 0 where another one is."""
        embeddings = read_pictures(self.judge, pictures).embeddings
        rows = zip(self.people, embeddings, self.targets, strict=True)
        ranks = [self.galleries.rank(str(one.subject.number), *vectors) for one, *vectors in rows]
        return np.array([float(rank == 0) for rank in ranks])

    def measure_style(self, pictures: Pictures) -> Values:
        """Return 1 where the judge reads the asked style, 0 elsewhere."""
        words = read_pictures(self.judge, pictures).words["style"]
        return np.array(
            [float(word == one.target.style) for word, one in zip(words, self.people, strict=True)]
        )


def draw_again(person: PersonInStyle, seed: int = 2) -> Image.Image:
    """Draw the same person in the asked style with other shapes of the same attributes."""
    rng = random.Random(f"{seed}/people/{person.subject.number}")
    return draw(replace(person.target, seed=rng.randrange(2**31)))


def draw_others(person: PersonInStyle, count: int, seed: int = 1) -> Pictures:
    """Draw other characters in a person's asked style."""
    drawings = []
    for place in range(count):
        rng = random.Random(f"{seed}/people/{person.subject.number}/{place}")
        other = sample_character(rng, "training", person.target.style)
        drawings.append(draw(change_attributes(other, person.free_attributes, rng)))
    return drawings
