"""The page: every figure with its promise, its numbers, and whether it keeps the promise."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from imprompt.evaluation.figures.figure import Figure
from imprompt.evaluation.figures.studio import Settings
from imprompt.evaluation.figures.verdicts import SEEN_ON, SEEN_RUNS, SEEN_WEIGHTS, VERDICTS
from imprompt.output import written_whole

COMPARED_NAME = "compared"
"""How the names of figures begin that compare a study's runs."""

QUALITY = 88
"""Of the JPEG files."""

INTRODUCTION = """\
# Figures

The paper's figures in miniature, on the embedded model (64 × 64 px emoji). All are made, this page too, by

    imprompt evaluate figures {option}--output docs/figures

from the shipped weights and the shipped held-out drawings alone{but}; no part of the model has seen the
concepts.
{settings}

What was measured, in brackets the 95 % interval by bootstrap over concepts; 0 is “no more than by chance”:

- *likeness*: the judge's similarity to the own image prompt minus that to the other rows'. The judge is the
  encoder that conditions nothing.
- *palette*: the share of colours, the ground left out, in common with the own picture minus with the others'.
- *layout*: correlation of where something stands out from the ground, in 8 × 8 places, with the own picture
  minus with the others'.
- *edges*: correlation of the edges found in the result with the own edges minus with the others'.

What limits everything here is the base, trained for two hours on two cores: its pictures are soft and often
shapeless ([log](../log.md)).
"""


def write_figure(figure: Figure, shown: int, folder: Path) -> None:
    """The figure's sheet as a JPEG file."""
    with written_whole(folder / f"{figure.name}.jpg") as part:
        figure.sheet(shown).save(part, format="JPEG", quality=QUALITY)


def write_page(
    figures: Sequence[Figure], settings: Settings, weights: Path, folder: Path, *, runs: str = ""
) -> None:
    """`README.md` beside the figures; `runs` is the fingerprint of those that are compared, if any are.

    Without runs, what an earlier page in that folder says of comparisons stays: they were not made anew.
    """
    kept = [] if runs else comparisons_in(folder / "README.md")
    how = (
        f"Behind each number are {settings.measured} concepts, those of the README's figure first, others "
        f"by hash;\n{settings.shown} of them are shown. {settings.steps} DDIM steps, guidance "
        f"{settings.guidance_scale}; the noise is the same throughout a row, unless a seed is named."
    )
    with_runs = "--runs runs/study ", ", the last three from what `scripts/study` trained"
    option, but = with_runs if runs or kept else ("", "")
    is_seen = fingerprint(weights) == SEEN_WEIGHTS and settings == Settings() and runs in ("", SEEN_RUNS)
    introduction = INTRODUCTION.format(option=option, but=but, settings=how)
    parts = [introduction, *(section(figure, VERDICTS, is_seen) for figure in figures), *kept]
    with written_whole(folder / "README.md") as part:
        part.write_text("\n".join(parts), encoding="utf-8")


def comparisons_in(page: Path) -> list[str]:
    """The sections of a page whose figures compare a study's runs."""
    if not page.is_file():
        return []
    sections = re.split(r"(?m)^(?=## )", page.read_text(encoding="utf-8"))
    return [f"{one.rstrip()}\n" for one in sections if f"]({COMPARED_NAME}" in one]


def section(figure: Figure, verdicts: Mapping[str, str], is_seen: bool) -> str:
    """One figure of the page."""
    verdict = f"**Does it?** {verdicts.get(figure.name, 'Not judged yet.')} (Seen on {SEEN_ON}.)"
    if not is_seen:
        verdict = "**Does it?** Nobody has looked yet: other weights or settings than at the last look."
    lines = [
        f"## {figure.title}",
        f"Should show: {figure.promise}",
        f"![{figure.title}]({figure.name}.jpg)",
        verdict,
        "\n".join(f"- {line}" for line in figure.lines),
        f"Made with: {figure.settings}.",
    ]
    return "\n\n".join(lines) + "\n"


def fingerprint(weights: Path) -> str:
    """Twelve hexadecimal digits that change with any weight."""
    digest = hashlib.sha256()
    for path in sorted(weights.rglob("*.safetensors")):
        digest.update(str(path.relative_to(weights)).encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
