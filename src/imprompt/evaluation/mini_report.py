"""The page of the embedded model: what `suites` measured, said in sentences, tables, charts and pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from imprompt.evaluation.against import verdict
from imprompt.evaluation.metrics import Interval
from imprompt.evaluation.report import Block, Cell, Column, Grid, Report, Section, Table, Tile
from imprompt.evaluation.scoring import (
    CODEC,
    COPY,
    FLOOR,
    PROMPTED,
    WITH_TEXT,
    Score,
    by_concept,
    over_concepts,
    under,
)
from imprompt.pages import Chart, Dot, DotPlot, Line
from imprompt.pages.charts import Tone

NAMES = {
    PROMPTED: "image prompt alone, λ = 1",
    WITH_TEXT: "image prompt and text, λ = 1",
    FLOOR: "none, λ = 0 (floor)",
    COPY: "light copy of the reference (ceiling)",
    CODEC: "the reference through the autoencoder",
}
"""What the tables call the conditions, in the tables' order."""


COPY_NAMES = {
    "generated": "pictures made with the image prompt",
    "held-out drawings": "unseen drawings (what chance makes)",
    "light copies of training drawings": "light copies of training drawings (what the test finds)",
}


def mini_report(
    summary: Mapping[str, Any],
    scores: Sequence[Score],
    cases: Sequence[Grid],
    contacts: Grid,
) -> Report:
    """The page.

    Args:
        summary: as `suites.evaluate` makes it
        scores: one a picture
        cases: best, median and worst concepts
        contacts: the contact sheet
    """
    return Report(
        title="The embedded model on concepts it has never seen",
        lead=lead(summary, scores),
        sections=[
            following(summary, scores),
            *([] if summary["against"] is None else [against(summary["against"])]),
            text_and_image(summary["curve"]),
            together(summary),
            Section(
                "Best, median and worst concepts",
                "Each reference with all pictures made of it, by the gap of its pictures.",
                cases,
            ),
            Section(
                "Contact sheet",
                f"The first {len(contacts.rows)} concepts by a hash of their names: nobody chose them.",
                [contacts],
            ),
        ],
        facts=facts(summary),
        over=f"imprompt evaluate mini{said_self(summary)}",
        tiles=tiles(summary, scores),
    )


def said_self(summary: Mapping[str, Any]) -> str:
    """ " · self" where the judge is the conditioning encoder."""
    return " · self: the judge is the conditioning encoder" if summary["judge"]["self"] else ""


def share_of_ceiling(summary: Mapping[str, Any], scores: Sequence[Score]) -> Interval:
    """The gap as a share of a light copy's mean gap."""
    ceiling = summary["all"]["conditions"][COPY]["gap"].mean
    prompted = under(scores, PROMPTED)
    return over_concepts(prompted, lambda score: score.gap / ceiling)


def lead(summary: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """How well the image prompt is followed, in one plain sentence."""
    figures = summary["all"]
    row, share = figures["conditions"][PROMPTED], share_of_ceiling(summary, scores)
    found = (
        f"its concept is found first in {100 * row['retrieval@1'].mean:.0f} % of the pictures, by chance in "
        f"{100 * figures['chance@1']:.1f} %"
    )
    judged = ", as the conditioning encoder itself judges" if summary["judge"]["self"] else ""
    if row["gap"].low <= 0:
        said = "pictures are no nearer to their own reference than to another"
        return f"The image prompt is not followed{judged}: {said}; {found}."
    said = f"{100 * share.mean:.0f} % of the way from another drawing to a light copy of it"
    return (
        f"The image prompt is followed{judged}: from one drawing of an unseen concept, without a word, "
        f"pictures come {said}; {found}."
    )


def tiles(summary: Mapping[str, Any], scores: Sequence[Score]) -> list[Tile]:
    """The key figures."""
    figures, curve = summary["all"], summary["curve"]
    row = figures["conditions"][PROMPTED]
    found = [
        Tile(row["gap"], "gap to a shuffled reference", "", digits=2),
        Tile(share_of_ceiling(summary, scores), "of a light copy’s gap", "", percent=True),
        Tile(row["retrieval@1"], "found first", f"{100 * figures['chance@1']:.1f} % by chance", percent=True),
        Tile(
            row["retrieval@5"],
            "among the first five",
            f"{100 * figures['chance@5']:.1f} % by chance",
            percent=True,
        ),
        Tile(curve["text"][-1], "of what a text asks for stays", "at λ = 1", percent=True),
    ]
    return found


def following(summary: Mapping[str, Any], scores: Sequence[Score]) -> Section:
    """Is the reference followed? Tables, styles, concepts."""
    blocks: list[Block] = [score_table(summary["all"], "All concepts")]
    if summary["without twins"]:
        blocks.append(
            score_table(summary["without twins"], "Without concepts that some training drawing looks like")
        )
    return Section(
        "Is the reference followed?",
        "Similarity is the cosine between the judge’s features of a picture and of its reference; the gap, "
        "how much more that is than to another reference of the same style. First, or among five: the "
        "reference’s place when the judge looks for the picture among all unseen drawings of that style. "
        "Brackets are 95 % intervals over concepts.",
        [*blocks, style_plot(summary, scores), concept_chart(scores)],
    )


def score_table(figures: Mapping[str, Any], title: str) -> Table:
    """A row a condition, and chance."""
    columns = [Column(""), Column("similarity", digits=2), Column("gap", digits=2)]
    columns += [Column("first", percent=True), Column("among five", percent=True)]
    keys = ["similarity", "gap", "retrieval@1", "retrieval@5"]
    reads = figures["conditions"][PROMPTED]["similarity to caption"] is not None
    if reads:
        columns.append(Column("to its caption (CLIP-T)", digits=2))
        keys.append("similarity to caption")
    rows: list[list[Cell]] = [
        [label, *(figures["conditions"][name][key] for key in keys)]
        for name, label in NAMES.items()
        if name in figures["conditions"]
    ]
    rows.append(["chance", None, 0.0, figures["chance@1"], figures["chance@5"], *([None] if reads else [])])
    return Table(columns, rows, title=f"{title}: {figures['concepts']}", strong=[0])


def against(figures: Mapping[str, Any]) -> Section:
    """This adapter minus an earlier one."""
    columns = [Column(""), "this one", figures["adapter"], "difference", Column("this one has")]
    rows: list[list[Cell]] = [
        [name, one["this"], one["earlier"], one["difference"], verdict(one["difference"])]
        for name, one in figures["differences"].items()
    ]
    return Section(
        f"Against “{figures['adapter']}”",
        "The same concepts, seeds and settings; differences are paired, concept by concept. What the text "
        "asks for: how much more a picture looks like what the base alone draws from its text than from "
        "others. Diversity: the mean distance among the pictures of one concept.",
        [Table(columns, rows)],
    )


def style_plot(summary: Mapping[str, Any], scores: Sequence[Score]) -> DotPlot:
    """The gap by the reference's style."""
    prompted = under(scores, PROMPTED)
    styles = {score.style for score in prompted}
    means = {
        style: over_concepts([s for s in prompted if s.style == style], lambda score: score.gap)
        for style in styles
    }
    ordered = sorted(means, key=lambda style: -means[style].mean)
    whole = summary["all"]["conditions"][PROMPTED]["gap"]
    dots = [Dot("all styles", whole.mean, (whole.low, whole.high), "accent")]
    dots += [Dot(style, means[style].mean, (means[style].low, means[style].high)) for style in ordered]
    return DotPlot(
        "Gap by the reference’s style",
        "Means over concepts with 95 % intervals; another reference has none.",
        dots,
        [("light copy", summary["all"]["conditions"][COPY]["gap"].mean)],
    )


def concept_chart(scores: Sequence[Score]) -> Chart:
    """Every concept's gap, sorted: how many are followed at all."""

    def ranked(condition: str) -> list[tuple[float | int, float | int | None]]:
        gaps = by_concept(under(scores, condition), lambda score: score.gap)
        return list(enumerate(sorted(gaps.values(), reverse=True), 1))

    lines = [
        Line("light copy", ranked(COPY), "ink"),
        Line("λ = 0", ranked(FLOOR), "ink"),
        Line("λ = 1", ranked(PROMPTED), filled=True),
    ]
    return Chart(
        "Gap of every concept, sorted",
        "From the concept that is followed best to the worst one; below zero, another reference is nearer.",
        lines,
        zero=True,
        across="concept",
    )


def text_and_image(curve: Mapping[str, Any]) -> Section:
    """The trade-off over λ."""
    charts: list[Block] = [tradeoff_chart(curve), scales_chart(curve)]
    if curve["without text"]["similarity to text"] is not None:
        charts.append(words_chart(curve))
    best, area = curve["best scale"], curve["area"]
    return Section(
        "Do text and image share the picture?",
        f"{curve['concepts']} references, each with one of the texts “{curve['asked']}”, at five strengths "
        "λ. What follows the image is the gap, as a share of a light copy’s. What follows the text is how "
        "much more a picture looks like what the base alone draws from it than from the others, as a share "
        f"of that at λ = 0. Their product is largest at λ = {best:g}; the area under the curve is "
        f"{area.mean:.2f} [{area.low:.2f}, {area.high:.2f}] of 1.",
        [*charts, curve_table(curve)],
    )


def ends(interval: Interval) -> tuple[float, float]:
    """Low and high."""
    return interval.low, interval.high


def tradeoff_chart(curve: Mapping[str, Any]) -> Chart:
    """Text against image, a point for each λ."""
    image, text = curve["image"], curve["text"]
    line = Line(
        "",
        [(x.mean, y.mean) for x, y in zip(image, text, strict=True)],
        intervals=[ends(interval) for interval in text],
        sideways=[ends(interval) for interval in image],
        names=[f"λ = {scale:g}" for scale in curve["scales"]],
    )
    return Chart(
        "Following the text against following the image",
        "Up: what stays of the text. Right: the gap, of a light copy’s. Best is the upper right.",
        [line],
        across="image",
        up="text",
        free=True,
    )


def scales_chart(curve: Mapping[str, Any]) -> Chart:
    """Both over λ."""
    lines = [_over_scales(curve, "text", "text", "ink"), _over_scales(curve, "image", "image", "accent")]
    return Chart(
        "Both over λ",
        "The same figures over the strength of the image prompt.",
        lines,
        zero=True,
        across="λ",
    )


def _over_scales(curve: Mapping[str, Any], key: str, label: str, tone: Tone) -> Line:
    values = curve[key]
    points = [(scale, value.mean) for scale, value in zip(curve["scales"], values, strict=True)]
    return Line(label, points, tone, intervals=[ends(value) for value in values])


def words_chart(curve: Mapping[str, Any]) -> Chart:
    """CLIP-T over λ."""
    plain = curve["without text"]["similarity to text"]
    with_text = _over_scales(curve, "similarity to text", "with text", "accent")
    without = Line("without", [(curve["scales"][0], plain.mean), (curve["scales"][-1], plain.mean)], "ink")
    return Chart(
        "Similarity to the whole text (CLIP-T)",
        "Cosine of the judge’s features of picture and text; without: at λ = 1, no text given.",
        [without, with_text],
        across="λ",
    )


def curve_table(curve: Mapping[str, Any]) -> Table:
    """The curve's numbers."""
    reads = curve["without text"]["similarity to text"] is not None
    columns = [Column(""), Column("image", digits=2), Column("text", digits=2)]
    columns += [Column("product", digits=2)] + ([Column("to the text (CLIP-T)", digits=2)] if reads else [])
    rows: list[list[Cell]] = [
        [
            f"λ = {scale:g}",
            curve["image"][place],
            curve["text"][place],
            curve["product"][place],
            *([curve["similarity to text"][place]] if reads else []),
        ]
        for place, scale in enumerate(curve["scales"])
    ]
    plain = curve["without text"]
    rows.append(
        ["λ = 1, no text", plain["image"], plain["text"], None]
        + ([plain["similarity to text"]] if reads else [])
    )
    return Table(columns, rows)


def together(summary: Mapping[str, Any]) -> Section:
    """Diversity, KID, copies."""
    blocks: list[Block] = []
    labels = {
        PROMPTED: NAMES[PROMPTED],
        FLOOR: NAMES[FLOOR],
        "held-out drawings": "half of the unseen drawings (best)",
    }
    rows: list[list[Cell]] = [[labels.get(name, name), value] for name, value in summary["kid"].items()]
    blocks.append(
        Table(
            ["", Column("KID × 1000", digits=2)],
            rows,
            "Against the unseen drawings, by the judge’s features; lower is more alike. Intervals are over "
            "disjoint parts of the pictures.",
            "Do the pictures look like drawings?",
        )
    )
    copies = summary["copies"]
    said = (
        "Diversity is the mean cosine distance among the pictures of one concept: "
        + _in_brackets(summary["diversity"])
        if summary["diversity"]
        else "Diversity needs two seeds of each concept; this run had one."
    )
    if copies is None:
        said += (
            " Whether pictures are copies of training drawings can be said where those are: draw them with "
            "`imprompt mini build-data` and run this again."
        )
    else:
        blocks.append(copy_table(copies))
    return Section("All pictures together", said, blocks)


def copy_table(copies: Mapping[str, Any]) -> Table:
    """The share of copies beside chance and beside true copies."""
    return Table(
        ["", Column("copies", percent=True)],
        [[COPY_NAMES[name], share] for name, share in copies["shares"].items()],
        f"Of {copies['training drawings']:,} training drawings. A picture counts as a copy if its nearest "
        f"one is less than {copies['ratio']:.2f} times as far as the second nearest of that icon set.",
        "Are they copies?",
    )


def _in_brackets(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]."


def facts(summary: Mapping[str, Any]) -> dict[str, Any]:
    """How it was made, for people."""
    settings, judge, adapter = summary["settings"], summary["judge"], summary["adapter"]
    return {
        "adapter": f"{adapter['name']}: {adapter['tokens']} tokens, {adapter['parameters']:,} parameters",
        "concepts": settings["concepts"],
        "seeds of each": settings["seeds"],
        "denoising steps": settings["steps"],
        "guidance scale": settings["guidance_scale"],
        "texts": summary["curve"]["asked"],
        "judge": f"{judge['name']} ({judge['fingerprint']})",
        "judge conditions, too": judge["self"],
        "pictures": summary["all"]["conditions"][PROMPTED]["pictures"],
        "seconds": summary["seconds"],
    }
