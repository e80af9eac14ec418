"""The training of the judge and of its text encoder, and that evaluation reads what training wrote."""

import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator
from torch.nn import functional as F

from imprompt.errors import ConfigError
from imprompt.evaluation.judge import load_judge
from imprompt.evaluation.pictures import load_held_out
from imprompt.training.data import EmojiBatches
from imprompt.training.emoji import Drawing, load_data
from imprompt.training.held_out import write_held_out
from imprompt.training.objectives.contrastive import contrast
from imprompt.training.objectives.judging import JudgeObjective, concept_contrast, retrieval
from imprompt.training.objectives.judging_text import JudgeTextObjective, caption, name_ranks
from imprompt.training.recipe import JudgeRecipe, JudgeTextRecipe, load_recipe
from imprompt.training.sheets import as_picture
from toy_pictures import write_toy_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_data(tmp_path_factory.mktemp("judge") / "data", size=16)


@pytest.fixture(scope="module")
def objective(data: Path) -> JudgeObjective:
    sizes = {"widths": (8, 12), "depths": (1, 1), "patch_size": 4, "embedding_dim": 6}
    return JudgeObjective(JudgeRecipe(stage="judge", data=str(data), steps=1, batch_size=8, **sizes))


def test_contrast_against_a_plain_sum() -> None:
    embeddings = F.normalize(torch.randn(7, 5, generator=Generator().manual_seed(0)), dim=-1)
    concepts, temperature = [0, 1, 0, 2, 1, 0, 3], 0.2
    z, total = embeddings.double().numpy(), 0.0
    for i in range(7):
        others = [a for a in range(7) if a != i]
        whole = sum(math.exp(z[i] @ z[a] / temperature) for a in others)
        same = [p for p in others if concepts[p] == concepts[i]]
        terms = [math.log(math.exp(z[i] @ z[p] / temperature) / whole) for p in same]
        total -= sum(terms) / max(len(same), 1) / 7
    loss = concept_contrast(embeddings, torch.tensor(concepts), temperature)
    assert float(loss) == pytest.approx(total, abs=1e-6)


def test_the_loss_falls_when_pictures_of_one_concept_draw_together() -> None:
    near, far = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    concepts = torch.tensor([0, 1, 0, 1])
    together = concept_contrast(torch.cat([near, near]), concepts, 0.1)
    mixed = concept_contrast(torch.cat([near, near.flip(0)]), concepts, 0.1)
    assert together < concept_contrast(torch.cat([far, far]), concepts, 0.1) < mixed


def test_the_same_randomness_gives_the_same_loss(objective: JudgeObjective) -> None:
    batch = EmojiBatches(objective.seen, 8, seed=0)[0]
    first, second, third = (objective.loss(replace(batch, seed=seed))["loss"] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_views_are_pictures_of_training_concepts(objective: JudgeObjective) -> None:
    pixels = objective.views(objective.seen, [0, 1, 2], Generator().manual_seed(0))
    assert pixels.shape == (3, 3, 16, 16)
    assert pixels.abs().max() <= 1
    assert not {d.concept for d in objective.seen.drawings} & {d.concept for d in objective.unseen.drawings}


def test_a_partner_shows_the_same_concept(objective: JudgeObjective) -> None:
    for row, concept in enumerate(objective.seen.concepts.tolist()):
        partner = objective.partner(row, concept, random.Random(row))
        assert objective.seen.drawings[partner].concept == objective.seen.drawings[row].concept


def test_retrieval_looks_in_the_target_style_only() -> None:
    gallery = torch.eye(4)
    concepts, styles = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    ranks, chance = retrieval(gallery, gallery, concepts, styles, styles)
    assert ranks.tolist() == [0, 0, 0, 0]
    assert chance.tolist() == [0.5] * 4
    ranks, _ = retrieval(gallery, gallery, concepts, styles, 1 - styles)
    assert ranks.tolist() == [1, 1, 1, 1]  # everything ties, and ties count against


def test_retrieval_says_where_there_is_nothing_to_find() -> None:
    ranks, _ = retrieval(
        torch.eye(2), torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([1, 1])
    )
    assert ranks.tolist() == [-1, 0]


def test_held_out_figures_are_shares(objective: JudgeObjective) -> None:
    with torch.no_grad():
        figures = objective.held_out()
        assert objective.held_out() == figures
    assert {"copy@1", "other style@1", "copy chance@1"} <= set(figures)
    assert all(0 <= figure <= 1 for figure in figures.values())


def test_evaluation_reads_the_judge_that_training_wrote(objective: JudgeObjective, tmp_path: Path) -> None:
    objective.export(tmp_path)
    assert {path.name for path in (tmp_path / "judge").iterdir()} == {"config.json", "model.safetensors"}
    judge = load_judge(tmp_path / "judge")
    rows = [0, 3]
    pixels = objective.unseen.plain(rows)
    pictures = [as_picture(row) for row in pixels]
    with torch.no_grad():
        expected = objective.embed(torch.stack([judge.pixels(picture) for picture in pictures]))
    assert torch.allclose(judge.features(pictures), expected, atol=1e-6)


def test_evaluation_reads_the_held_out_drawings_that_training_wrote(data: Path, tmp_path: Path) -> None:
    count = write_held_out(data, tmp_path)
    held_out = load_held_out(tmp_path)
    pictures, drawings = load_data(data)
    rows = [row for row, drawing in enumerate(drawings) if drawing.held_out]
    assert count == len(rows) == len(held_out.drawings)
    assert np.array_equal(held_out.pictures, pictures[rows] * (pictures[rows][..., 3:] > 0))
    assert [d.concept for d in held_out.drawings] == [drawings[row].concept for row in rows]


# The text encoder


def text_recipe(data: Path, **changes: object) -> JudgeTextRecipe:
    settings = {"width": 32, "layers": 1, "vocabulary": 600, "batch_size": 16, "steps": 1, **changes}
    return JudgeTextRecipe(stage="judge-text", data=str(data), **settings)  # pyright: ignore


@pytest.fixture(scope="module")
def judged(objective: JudgeObjective, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("judged")
    objective.export(output)
    return output


@pytest.fixture(scope="module")
def reading(data: Path, judged: Path) -> JudgeTextObjective:
    return JudgeTextObjective(text_recipe(data), judged)


def test_the_image_side_is_the_judges_own_features(reading: JudgeTextObjective, judged: Path) -> None:
    rows = [0, 5, 7]
    pictures = [as_picture(row) for row in reading.seen.plain(rows)]
    expected = load_judge(judged / "judge").features(pictures)
    assert torch.allclose(reading.targets[0, rows], expected, atol=1e-5)
    assert reading.targets.shape[:2] == (2, len(reading.seen))
    assert not reading.targets.requires_grad


def test_the_judge_stays_locked(reading: JudgeTextObjective) -> None:
    trained = [parameter for group in reading.parameter_groups() for parameter in group["params"]]
    ours = {id(p) for p in (*reading.text.parameters(), reading.log_scale)}
    assert {id(p) for p in trained} == ours


def test_the_same_batch_gives_the_same_captions_and_loss(reading: JudgeTextObjective) -> None:
    batch = EmojiBatches(reading.seen, 16, seed=0)[0]
    with torch.no_grad():
        first, second = reading.loss(batch)["loss"], reading.loss(batch)["loss"]
        other = reading.loss(replace(batch, seed=batch.seed + 1))["loss"]
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_caption_says_what_is_drawn_and_no_other_ground() -> None:
    drawing = Drawing("red disc", ("shape", "round"), "noto", False)
    said = {caption(drawing, "blue", random.Random(seed)) for seed in range(200)}
    assert "red disc" in said
    assert any(words in said for words in ("shape", "round"))
    assert all({"red disc", "shape", "round"} & set(words.split(", ")) for words in said)
    assert any(words.endswith("on a blue background") for words in said)
    assert not any("background" in words and "blue" not in words for words in said)


def test_training_teaches_the_names_of_the_training_concepts(data: Path, judged: Path) -> None:
    taught = JudgeTextObjective(text_recipe(data), judged)
    groups = taught.parameter_groups()
    descent = torch.optim.AdamW([{**group, "lr": 3e-3} for group in groups])
    batches = EmojiBatches(taught.seen, 16, seed=0)
    names = sorted({drawing.concept for drawing in taught.seen.drawings})

    def found() -> float:
        with torch.no_grad():
            ranks = name_ranks(taught.targets[0], taught.embed(names), taught.seen.concepts)
        return float((ranks < 5).double().mean())

    before = found()
    for step in range(40):
        descent.zero_grad()
        taught.loss(batches[step])["loss"].backward()
        descent.step()
    assert found() > before + 0.15


def test_the_loss_is_contrast_with_the_judges_features(reading: JudgeTextObjective) -> None:
    images = reading.targets[0, :4]
    texts = reading.embed(["red disc", "green box", "blue bar", "gold cross"])
    concepts = torch.arange(4)
    assert contrast(images, texts, reading.log_scale, concepts) > contrast(
        images, images, reading.log_scale, concepts
    )


def test_evaluation_reads_captions_with_the_text_encoder_that_training_wrote(
    reading: JudgeTextObjective, judged: Path, tmp_path: Path
) -> None:
    shutil.copytree(judged / "judge", tmp_path / "judge")
    reading.export(tmp_path)
    judge = load_judge(tmp_path / "judge")
    captions = ["red disc", "a blue bar, on a red background"]
    with torch.no_grad():
        expected = F.normalize(reading.embed(captions), dim=-1)
    assert judge.reads_text
    assert torch.allclose(judge.text_features(captions), expected, atol=1e-6)


def test_another_judge_does_not_keep_the_text_encoder_of_the_one_before(
    objective: JudgeObjective, reading: JudgeTextObjective, tmp_path: Path
) -> None:
    objective.export(tmp_path)
    reading.export(tmp_path)
    objective.export(tmp_path)
    assert not load_judge(tmp_path / "judge").reads_text


def test_names_are_found_among_names() -> None:
    images, right = torch.eye(3), torch.tensor([0, 1, 2])
    assert name_ranks(images, 2 * torch.eye(3), right).tolist() == [0, 0, 0]
    assert name_ranks(images, torch.ones(3, 3), right).tolist() == [2, 2, 2]  # ties count against


def test_figures_of_names_are_shares(reading: JudgeTextObjective) -> None:
    with torch.no_grad():
        figures = reading.held_out()
        assert reading.held_out() == figures
    assert set(figures) == {"name@1", "name@5", "prompt@1", "prompt@5", "name chance@1", "name chance@5"}
    assert all(0 <= figure <= 1 for figure in figures.values())


def test_without_a_judge_there_is_nothing_to_train_to(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train the stage judge first, or set weights"):
        JudgeTextObjective(text_recipe(data), tmp_path)


def test_the_recipes_text_encoder_is_small() -> None:
    recipe = load_recipe(Path(__file__).parents[1] / "recipes" / "mini-judge-text.toml")
    assert isinstance(recipe, JudgeTextRecipe)
    words = (recipe.vocabulary + recipe.text_length) * recipe.width
    layers = recipe.layers * 12 * recipe.width**2
    assert words + layers + 128 * recipe.width < 1_000_000
