"""The matrix of pipelines × features in docs/pipelines.md: what ran, what is refused, what does not exist.

A test fills the cells that `cells` marks it with. A ✓ is a test that ran and passed; a ✗ is one that ran,
passed and saw an error, whose sentence goes on the page.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from tiny_pipelines import CASES, Case


class Outcome(NamedTuple):
    """What a test found for a cell."""

    passed: bool
    refusal: str | None = None
    """The error's sentence, if the test saw that it is refused."""


OUTCOMES = pytest.StashKey[dict[tuple[str, str], Outcome]]()
"""(pipeline, feature) → what the tests of this session found."""


def _nothing(case: Case) -> str | None:
    return None


def _everywhere(case: Case) -> bool:
    return True


@dataclass(frozen=True)
class Feature:
    """A column.

    Args:
        title: its heading
        meaning: what a ✓ says
        lacks: why diffusers does not have it in a pipeline; None where it does
        tried: whether a test is due in a pipeline that has it
    """

    title: str
    meaning: str
    lacks: Callable[[Case], str | None] = _nothing
    tried: Callable[[Case], bool] = _everywhere


def _theirs(case: Case) -> str | None:
    return None if case.theirs else "diffusers has no IP-Adapter in this pipeline"


def _guidance(case: Case) -> str | None:
    return None if case.unguided else "the model is distilled: there is no guidance to switch off"


def _interval(case: Case) -> str | None:
    missing = "no callback of this pipeline can cut down all that guidance has doubled"
    return None if case.halved else _guidance(case) or missing


def _prompts(case: Case) -> str | None:
    return None if case.prompts else "several prompts are an error of diffusers' own in this pipeline"


def _pictures_each(case: Case) -> str | None:
    return "one video of each prompt" if case.frames > 1 else None


def _refuse_slicing(case: Case) -> str | None:
    return "this U-Net cannot slice its attention" if case.frames > 1 else None


COMPILED = {"SD1.5, text-to-image", "SD1.5, ControlNet", "SD1.5, AnimateDiff"}
"""Compiling takes seconds, and test_compile.py has more of it."""


def _compiled(case: Case) -> bool:
    return str(case) in COMPILED


FEATURES = {
    "itself": Feature(
        "rows", "imprompt finds out by itself which rows are the negative and the positive ones"
    ),
    "theirs": Feature("diffusers", "the picture equals that of diffusers' own IP-Adapter", _theirs),
    "hand": Feature("by hand", "it equals the paper's equation 5, computed row by row by the test itself"),
    "zero": Feature("λ = 0", "λ = 0 is the base model, bit for bit"),
    "detached": Feature("detach", "after detaching it is the base model again, bit for bit"),
    "unguided": Feature(
        "no guidance", "without classifier-free guidance it equals the one by hand", _guidance
    ),
    "prompts": Feature("prompts", "several prompts with a reference each equal each prompt alone", _prompts),
    "each": Feature("pictures", "several pictures of each prompt equal the ones by hand", _pictures_each),
    "interval": Feature("interval", "a callback stops guidance part-way: equals the one by hand", _interval),
    "references": Feature("two references", "two references acting together equal the ones by hand"),
    "mask": Feature("mask", "a soft mask: equals the one by hand"),
    "steps": Feature("steps", "another λ at every step: equals the one by hand"),
    "layers": Feature("layers", "another λ in every layer: equals the one by hand"),
    "adapters": Feature("two adapters", "two adapters on one U-Net equal the ones by hand"),
    "file": Feature("file", "embeddings saved to a file give the picture's result, bit for bit"),
    "lora": Feature("LoRA", "the user's LoRA acts, as by hand, and is bit for bit the same after detaching"),
    "sliced": Feature("slicing", "attention slicing, enabled before, changes nothing", _refuse_slicing),
    "compiled": Feature("compile", "`torch.compile(fullgraph=True)` changes nothing", tried=_compiled),
}


REPRESENTATIVE = {
    "SD1.5, text-to-image",
    "SD1.5, image-to-image",
    "SD1.5, inpainting, 9 channels",
    "SD1.5, ControlNet",
    "SD1.5, PAG",
    "SD1.5, AnimateDiff",
    "SD2.x, depth-to-image",
    "SDXL, text-to-image",
    "SDXL, ControlNet, inpainting",
    "SDXL, AnimateDiff",
    "Kolors, text-to-image",
}
"""Pipelines that have every feature tested whenever tests run."""

LAWS = {"itself", "theirs", "hand", "zero"}
"""Features that are tested in every pipeline whenever tests run; the others are slow tests."""


def cells(
    *features: str, only: Callable[[Case], bool] = _everywhere, refused: bool = False
) -> pytest.MarkDecorator:
    """Parametrise a test by all pipelines that have its features, each a cell of the matrix.

    Args:
        features: keys of `FEATURES`; all must be had and tried in the same pipelines
        only: the test is not for all of them
        refused: the test sees an error, and records its sentence with `refusal`
    """
    first = FEATURES[features[0]]
    cases = [case for case in CASES if first.lacks(case) is None and first.tried(case) and only(case)]
    values = []
    for case in cases:
        marks = [pytest.mark.cell(str(case), features, refused)]
        if features[0] not in LAWS and str(case) not in REPRESENTATIVE:
            marks.append(pytest.mark.slow)
        values.append(pytest.param(case, id=_slug(case), marks=marks))
    return pytest.mark.parametrize("case", values)


def _slug(case: Case) -> str:
    """What `pytest -k` takes."""
    return re.sub(r"[^\w.]+", "-", str(case))


def record(outcomes: dict[tuple[str, str], Outcome], item: pytest.Item, report: pytest.TestReport) -> None:
    """Note what a test that carries cells has found so far."""
    sentence = dict(item.user_properties).get("refusal")
    for mark in item.iter_markers("cell"):
        pipeline, features, refused = mark.args
        for feature in features:
            before = outcomes.get((pipeline, feature), Outcome(True))
            told = str(sentence) if refused and sentence else None
            outcomes[pipeline, feature] = Outcome(before.passed and report.passed, before.refusal or told)


def is_complete(outcomes: Mapping[tuple[str, str], Outcome]) -> bool:
    """Whether every cell that is due has been tested."""
    due = {
        (str(case), name)
        for case in CASES
        for name, feature in FEATURES.items()
        if feature.lacks(case) is None and feature.tried(case)
    }
    return due == set(outcomes)


# The page

PAGE = """# Pipelines

What imprompt does in each pipeline that diffusers has for a U-Net with text. The tests have written this
page, with tiny random models of {count} pipelines; {passed} cells passed:

```
pytest tests/test_pipelines*.py --write-matrix docs/pipelines.md
```

A run of all tests fails if it finds anything else than this. "Equals" means: to 1e-5 absolute, in float32,
on the latents of all samples and frames, which reach ±10; the image prompt changes these by more than 1e-2.

- ✓: a test ran and passed
- ✗: refused, by an error; its sentence is below
- –: diffusers does not have it; the reason is below
- empty: not tried; compiling takes seconds, so a few pipelines stand for all

{tables}

## What a ✓ says

{meanings}

## ✗

{refusals}

## –

{lacking}
"""


def page(outcomes: Mapping[tuple[str, str], Outcome]) -> str:
    """The page that says what the tests found."""
    refusals = sorted({found.refusal for found in outcomes.values() if found.refusal})
    reasons = sorted({reason for case in CASES for f in FEATURES.values() if (reason := f.lacks(case))})
    bases = list(dict.fromkeys(case.base for case in CASES))
    return PAGE.format(
        count=len(CASES),
        passed=sum(found.passed and not found.refusal for found in outcomes.values()),
        tables="\n\n".join(_table(base, outcomes, refusals, reasons) for base in bases),
        meanings="\n".join(f"- **{feature.title}**: {feature.meaning}" for feature in FEATURES.values()),
        refusals=_number_sentences("refused", "✗", refusals),
        lacking=_number_sentences("lacking", "–", reasons),
    )


def _table(base: str, outcomes: Mapping[tuple[str, str], Outcome], *notes: Sequence[str]) -> str:
    titles = [feature.title for feature in FEATURES.values()]
    lines = [[f"{base}", *titles], ["---"] + [":-:"] * len(titles)]
    for case in CASES:
        if case.base == base:
            lines.append([case.title, *(_cell(case, name, outcomes, *notes) for name in FEATURES)])
    return f"## {base}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(case: Case, name: str, outcomes: Mapping[tuple[str, str], Outcome], *notes: Sequence[str]) -> str:
    refusals, reasons = notes
    if reason := FEATURES[name].lacks(case):
        return f"[–{reasons.index(reason) + 1}](#lacking-{reasons.index(reason) + 1})"
    found = outcomes.get((str(case), name))
    if found is None or not found.passed:
        return " "
    if found.refusal is None:
        return "✓"
    return f"[✗{refusals.index(found.refusal) + 1}](#refused-{refusals.index(found.refusal) + 1})"


def _number_sentences(anchor: str, sign: str, sentences: Sequence[str]) -> str:
    numbered: Any = enumerate(sentences, 1)
    return (
        "\n".join(f'- <a id="{anchor}-{n}"></a>{sign}{n}: {sentence}' for n, sentence in numbered)
        or "Nothing."
    )
