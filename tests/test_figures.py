"""The figure page: one command makes it, its numbers mean what they say, the eye has looked."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from imprompt import mini
from imprompt.evaluation.exhibits import FEATURED
from imprompt.evaluation.figures import Settings, evaluate_figures
from imprompt.evaluation.figures.figure import Figure, said
from imprompt.evaluation.figures.measures import colour_gap, edge_gap, layout_gap, own_minus_others, palette
from imprompt.evaluation.figures.page import fingerprint, write_page
from imprompt.evaluation.figures.panels import PANELS, variations
from imprompt.evaluation.figures.studio import Studio, chosen, turned
from imprompt.evaluation.figures.verdicts import SEEN_RUNS, SEEN_WEIGHTS, VERDICTS
from imprompt.evaluation.metrics import Interval
from imprompt.evaluation.pictures import load_held_out

PAGE = Path(__file__).parents[1] / "docs" / "figures"
QUICK = Settings(measured=2, shown=1, steps=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return evaluate_figures(tmp_path_factory.mktemp("figures"), settings=QUICK)


def test_one_call_makes_every_figure_and_the_page(made: list[Path]) -> None:
    page, *figures = made
    text = page.read_text(encoding="utf-8")
    assert len(figures) == len(PANELS) == 9
    for figure in figures:
        assert f"]({figure.name})" in text
        with Image.open(figure) as picture:
            assert picture.width > 300
        assert figure.stat().st_size < 300_000
    assert text.count("Should show: ") == text.count("**Does it?**") == 9


def test_a_verdict_is_not_claimed_for_pictures_that_nobody_saw(made: list[Path]) -> None:
    assert made[0].read_text(encoding="utf-8").count("Nobody has looked yet") == 9


def test_runs_that_nobody_saw_have_no_verdict(tmp_path: Path) -> None:
    write_page([], Settings(), mini.WEIGHTS, tmp_path, runs="other runs")
    assert "--runs runs/study" in (tmp_path / "README.md").read_text(encoding="utf-8")
    figure = Figure("compared", "", "", "", {}, {})
    write_page([figure], Settings(), mini.WEIGHTS, tmp_path, runs="other runs")
    assert "Nobody has looked yet" in (tmp_path / "README.md").read_text(encoding="utf-8")
    write_page([figure], Settings(), mini.WEIGHTS, tmp_path, runs=SEEN_RUNS)
    assert VERDICTS["compared"] in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_comparisons_stay_on_the_page_when_only_the_others_are_made_anew(tmp_path: Path) -> None:
    compared, plain = (Figure(name, name, "", "", {}, {}) for name in ("compared-text", "text"))
    for figures, runs in (([plain, compared], "some runs"), ([plain], "")):
        write_page(figures, Settings(), mini.WEIGHTS, tmp_path, runs=runs)
        text = (tmp_path / "README.md").read_text(encoding="utf-8")
        assert text.count("## compared-text") == text.count("## text") == 1
    (tmp_path / "new").mkdir()
    write_page([plain], Settings(), mini.WEIGHTS, tmp_path / "new", runs="")
    assert "compared" not in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")


def test_the_eye_has_seen_the_pictures_of_the_shipped_weights() -> None:
    assert fingerprint(mini.WEIGHTS) == SEEN_WEIGHTS, "make the page anew, look at it, write verdicts.py"
    committed = {path.stem for path in PAGE.glob("*.jpg")}
    assert committed == set(VERDICTS)
    page = (PAGE / "README.md").read_text(encoding="utf-8")
    assert all(verdict in page for verdict in VERDICTS.values())


def test_a_figure_is_the_same_twice() -> None:
    one, two = (variations(Studio(mini.WEIGHTS, QUICK)) for _ in range(2))
    assert one.measured == two.measured
    assert all(list(one.columns[title]) == list(two.columns[title]) for title in one.columns)


def test_the_featured_concepts_come_first_and_no_twin_is_measured() -> None:
    drawings = chosen(load_held_out(), 24)
    assert [drawing.concept for drawing in drawings[: len(FEATURED)]] == list(FEATURED)
    assert len({drawing.concept for drawing in drawings}) == 24
    assert not any(drawing.is_twin for drawing in drawings[len(FEATURED) :])


def test_the_fingerprint_changes_with_any_weight(tmp_path: Path) -> None:
    (tmp_path / "part.safetensors").write_bytes(b"one")
    before = fingerprint(tmp_path)
    (tmp_path / "part.safetensors").write_bytes(b"two")
    assert fingerprint(tmp_path) != before


# What the numbers mean


def test_a_gap_is_one_for_the_pictures_themselves_and_nothing_for_strangers() -> None:
    red, blue = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")
    assert colour_gap([red, blue], [red, blue]) == Interval(1, 1, 1)
    assert colour_gap([red, red], [red, blue]) == Interval(0, -1, 1)
    assert colour_gap([red], [red]) is None


def test_edges_agree_with_their_own_picture_most() -> None:
    held_out = load_held_out()
    pictures = [held_out.on_white(drawing) for drawing in held_out.references(4)]
    controls = [mini.edge_picture(picture) for picture in pictures]
    agreement, misled = edge_gap(pictures, controls), edge_gap(pictures, turned(controls, 1))
    assert agreement is not None
    assert misled is not None
    assert agreement.mean > 0.5
    assert misled.mean < 0.1


def test_a_layout_does_not_ask_for_colours() -> None:
    held_out = load_held_out()
    pictures = [held_out.on_white(drawing) for drawing in held_out.references(4)]
    negatives = [ImageOps.invert(picture) for picture in pictures]
    kept, misled = layout_gap(negatives, pictures), layout_gap(negatives, turned(pictures, 1))
    assert kept is not None
    assert misled is not None
    assert kept.mean > 0.3
    assert misled.mean < 0.1


def test_own_minus_others_is_the_diagonal_minus_the_rest_of_the_row() -> None:
    assert own_minus_others(np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.2, 0.3, 1.0]])).mean == 0.75


@pytest.mark.parametrize("ground", ["white", "navy", "gold"])
def test_a_palette_leaves_the_ground_out_unless_there_is_nothing_else(ground: str) -> None:
    framed = Image.new("RGB", (16, 16), ground)
    assert palette(framed).max() == 1
    framed.paste((200, 30, 120), (4, 4, 12, 12))
    assert np.array_equal(palette(framed), palette(Image.new("RGB", (4, 4), (200, 30, 120))))


def test_what_could_not_be_measured_is_a_dash() -> None:
    figure = Figure("name", "title", "promise", "settings", {}, {"likeness": {"both": None, "one": "3 of 4"}})
    assert figure.lines == ["likeness: both –; one 3 of 4"]
    assert said(Interval(0.5, 0.25, 0.75)) == "0.50 [0.25, 0.75]"
