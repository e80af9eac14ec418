"""The suite's page."""

from collections.abc import Mapping, Sequence

from PIL import Image

from imprompt.lab.making.captions import write_full_caption
from imprompt.lab.making.characters import Split
from imprompt.lab.suite.scoring import (
    CODEC,
    CURVE_SCALES,
    PROMPTED,
    SCALES,
    Comparison,
    Score,
    SuiteFindings,
    TextFindings,
    name_scale,
)
from imprompt.lab.suite.subjects import CHANGES, Subject, select_suitable
from imprompt.report import (
    Block,
    Cell,
    Chart,
    Column,
    Grid,
    Interval,
    KeyFigure,
    Line,
    PictureRow,
    Report,
    Section,
    Table,
    format_mean,
    pick_best_median_worst,
)

SPLIT_TITLES: Mapping[Split, str] = {
    "combinations": "Unseen combinations of hair, skin and hairdo",
    "parts": "Shapes of hair and face never seen",
    "styles": "Styles never seen",
}
SHOWN = 12
"""Subjects in each grid of images."""


def build_report(
    findings: SuiteFindings,
    subjects: Mapping[Split, Sequence[Subject]],
    pictures: Mapping[tuple[str, str], Sequence[Image.Image]],
    scores: Sequence[Score],
) -> Report:
    """Build the page: key figures, each split, and the texts, with images."""
    sections = [build_split_section(findings, split, subjects[split], pictures, scores) for split in subjects]
    sections.append(build_text_section(findings, subjects["combinations"], pictures))
    if findings.against is not None:
        sections.append(build_comparison_section(findings.against))
    combinations = findings.splits["combinations"]
    return Report(
        title="The embedded model on characters it has never seen",
        lead=write_lead(findings),
        sections=sections,
        facts=list_facts(findings),
        overline="imprompt evaluate mini",
        key_figures=[
            KeyFigure(
                combinations.kept[PROMPTED], "of the attributes kept", "unseen combinations", percent=True
            ),
            KeyFigure(findings.splits["parts"].kept[PROMPTED], "kept", "unseen parts", percent=True),
            KeyFigure(findings.splits["styles"].kept[PROMPTED], "kept", "unseen styles", percent=True),
            KeyFigure(combinations.found[PROMPTED], "found first", describe_gallery(findings), percent=True),
        ],
    )


def write_lead(findings: SuiteFindings) -> str:
    """Write the result in one sentence."""
    combinations = findings.splits["combinations"]
    kept, ceiling = combinations.kept[PROMPTED].mean, combinations.kept[CODEC].mean
    return (
        f"From one drawing, without a word, pictures keep {100 * kept:.0f} % of a character's attributes "
        f"({100 * ceiling:.0f} % are read in the drawing itself); {combinations.found[PROMPTED].percent} "
        f"are nearer to their reference than to any other {describe_gallery(findings)}."
    )


def describe_gallery(findings: SuiteFindings) -> str:
    """Write among how many drawings a reference is searched."""
    return f"among {findings.settings.gallery} of its style"


def list_facts(findings: SuiteFindings) -> dict[str, str]:
    """List how the report was made."""
    settings = findings.settings
    mean, ends = format_mean(findings.diversity)
    return {
        "adapter": f"{findings.name}, {findings.tokens} tokens",
        "pictures": f"{settings.subjects} characters of each kind, {settings.paint.steps} steps, "
        f"guidance {settings.paint.guidance_scale:g}",
        "diversity over seeds": f"{mean} {ends} cosine distance",
        "copies of training drawings": write_copies(findings.copies),
        "time": f"{findings.seconds:.0f} s",
    }


def write_copies(copies: Mapping[str, Interval] | None) -> str:
    """Write the shares of copies, or why there are none."""
    if copies is None:
        return "unknown: `imprompt mini build-data` draws what was trained on"
    return "; ".join(f"{share.percent} of {name}" for name, share in copies.items())


def build_split_section(
    findings: SuiteFindings,
    split: Split,
    subjects: Sequence[Subject],
    pictures: Mapping[tuple[str, str], Sequence[Image.Image]],
    scores: Sequence[Score],
) -> Section:
    """Make the tables and the grid of one split."""
    found = findings.splits[split]
    columns = [Column(""), *(Column(name, percent=True) for name in ("kept", "all kept", "found first"))]
    rows: list[list[Cell]] = [
        [name, found.kept[name], found.all_kept[name], found.found[name]] for name in found.kept
    ]
    attributes: list[list[Cell]] = [
        [name, share, drawn, count] for name, (share, drawn, count) in found.attributes.items()
    ]
    headings = [Column(""), Column(PROMPTED, percent=True), Column("in the drawing", percent=True)]
    blocks: list[Block] = [
        Table(columns, rows, strong=[list(found.kept).index(PROMPTED)]),
        Table([*headings, Column("characters", digits=0)], attributes, title="Attribute by attribute"),
        build_split_grid(split, subjects, pictures, scores),
    ]
    text = "The share of the reference's attributes that the judge reads in the picture; no text was given."
    return Section(SPLIT_TITLES[split], text, blocks)


def build_split_grid(
    split: Split,
    subjects: Sequence[Subject],
    pictures: Mapping[tuple[str, str], Sequence[Image.Image]],
    scores: Sequence[Score],
) -> Grid:
    """Show the best, median and worst subjects with their images."""
    prompted = [score for score in scores if score.split == split and score.condition == PROMPTED]
    places = pick_best_median_worst([score.kept for score in prompted], SHOWN // 3)
    conditions = [name_scale(scale) for scale in SCALES]
    rows = [
        PictureRow(
            [subjects[place].picture, *(pictures[split, name][place] for name in conditions)],
            f"{100 * prompted[place].kept:.0f} %: {write_full_caption(subjects[place].character)}"
            + (f"; read otherwise: {prompted[place].wrong}" if prompted[place].wrong else ""),
        )
        for place in places
    ]
    return Grid(["reference", *conditions], rows, title="Best, median and worst")


def build_text_section(
    findings: SuiteFindings,
    subjects: Sequence[Subject],
    pictures: Mapping[tuple[str, str], Sequence[Image.Image]],
) -> Section:
    """Make the charts, tables and grids of the texts."""
    blocks: list[Block] = []
    for name, found in findings.texts.items():
        few = select_suitable(subjects, CHANGES[name])[: found.subjects]
        blocks += [build_text_chart(found), build_text_table(found), build_text_grid(name, few, pictures)]
    text = (
        "Each text asks for what the reference does not show. Asked: the judge reads it in the picture. "
        "Kept: the share of the reference's other attributes that it reads."
    )
    return Section("Image and text together", text, blocks)


def build_text_chart(found: TextFindings) -> Chart:
    """Draw both shares over λ."""
    lines = [draw_line("asked", found.asked, "ink"), draw_line("kept", found.kept, "accent")]
    return Chart(f"“{found.text}”", f"{found.subjects} characters.", lines, zero=True, x_label="λ")


def draw_line(label: str, values: Sequence[Interval], tone: str) -> Line:
    """Make one line over `CURVE_SCALES`."""
    points = [(scale, value.mean) for scale, value in zip(CURVE_SCALES, values, strict=True)]
    return Line(label, points, tone, intervals=[(value.low, value.high) for value in values])  # type: ignore[arg-type]


def build_text_table(found: TextFindings) -> Table:
    """Make the table of the chart's numbers."""
    rows: list[list[Cell]] = [
        [f"λ = {scale:g}", asked, kept]
        for scale, asked, kept in zip(CURVE_SCALES, found.asked, found.kept, strict=True)
    ]
    columns = [Column(""), Column("asked for and present", percent=True), Column("others kept", percent=True)]
    return Table(columns, rows, strong=[found.best])


def build_text_grid(
    name: str, subjects: Sequence[Subject], pictures: Mapping[tuple[str, str], Sequence[Image.Image]]
) -> Grid:
    """Show the first subjects at every λ."""
    conditions = [condition for key, condition in pictures if key == name]
    rows = [
        PictureRow(
            [subject.picture, *(pictures[name, condition][place] for condition in conditions)],
            subject.character.style,
        )
        for place, subject in enumerate(subjects[: SHOWN // 2])
    ]
    return Grid(["reference", *conditions], rows)


def build_comparison_section(comparison: Comparison) -> Section:
    """Make the table of differences from an earlier report."""
    rows: list[list[Cell]] = [
        [name, difference, judge_difference(difference)]
        for name, difference in comparison.differences.items()
    ]
    table = Table([Column("λ = 1"), Column("difference", percent=True), Column("")], rows)
    text = "This report minus the earlier one, paired character by character, with 95 % intervals."
    return Section(f"Against {comparison.name}", text, [table])


def judge_difference(difference: Interval) -> str:
    """Say whether this report has more or less than the other one."""
    return {1: "more", -1: "less", 0: "cannot be told"}[difference.sign]
