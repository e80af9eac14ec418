"""What our pages share: axes, charts, pictures that fit into their room."""

import itertools
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imprompt.report import Chart, Line, draw_chart, embed_picture, format_short, smooth_points, thin_points
from imprompt.report.axes import make_value_axis, move_apart, round_step
from imprompt.report.charts import MOST_POINTS

FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)
VALUES = st.one_of(st.none(), FINITE)
POINTS = st.lists(st.tuples(st.integers(0, 10**7), VALUES), max_size=400).map(
    lambda points: sorted(dict(points).items())
)


# Axes and curves


@settings(max_examples=40)
@given(
    places=st.lists(st.floats(0, 200), max_size=12).map(sorted),
    distance=st.floats(1, 14),
)
def test_labels_are_moved_apart_in_order_and_stay_inside(places: list[float], distance: float) -> None:
    moved = move_apart(places, distance, 0, 200)
    assert all(later - earlier >= distance - 1e-6 for earlier, later in itertools.pairwise(moved))
    assert all(-1e-6 <= place <= 200 + 1e-6 for place in moved)
    if all(later - earlier >= distance for earlier, later in itertools.pairwise(places)):
        assert moved == pytest.approx(places, abs=1e-6)


@given(rough=st.floats(1e-12, 1e12))
def test_a_round_step_is_one_two_or_five_and_at_most_two_and_a_half_times_larger(rough: float) -> None:
    step = round_step(rough)
    assert rough * (1 - 1e-6) <= step <= 2.5 * rough * (1 + 1e-6)
    assert f"{step:.6e}"[0] in "125"


@settings(max_examples=40)
@given(values=st.lists(FINITE, min_size=1), zero=st.booleans())
def test_an_axis_holds_all_values_and_has_few_ticks(values: list[float], zero: bool) -> None:
    axis = make_value_axis(values, 198, 12, zero=zero)
    slack = 1e-9 * (axis.high - axis.low)
    assert axis.low - slack <= min(values)
    assert max(values) <= axis.high + slack
    assert 2 <= len(axis.ticks()) <= 7 or axis.logarithmic
    assert not zero or axis.low <= 0 <= axis.high


@settings(max_examples=40)
@given(points=POINTS, zero=st.booleans())
def test_any_curve_is_drawn_inside_its_picture(points: list[tuple[int, float | None]], zero: bool) -> None:
    drawn = draw_chart(
        Chart("Loss <&>", "", (Line("a", points, filled=zero), Line("b", points, "ink")), zero=zero)
    )
    if all(value is None for _, value in points):
        assert drawn == ""
        return
    root = xml.etree.ElementTree.fromstring(drawn)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for path in root.iter("path"):
        for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path.attrib["d"]):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height
    assert not re.search(r"\b(nan|inf)\b", drawn)


@settings(max_examples=40)
@given(points=POINTS)
def test_a_thinned_curve_is_short_ends_where_it_ended_and_invents_nothing(
    points: list[tuple[int, float | None]],
) -> None:
    thin = thin_points(points)
    assert len(thin) <= MOST_POINTS
    if len(points) <= MOST_POINTS:
        assert thin == points
    known = [value for _, value in points if value is not None]
    assert not points or thin[-1][0] == points[-1][0]
    slack = 1e-6 * max(map(abs, known), default=0)
    assert all(min(known) - slack <= value <= max(known) + slack for _, value in thin if value is not None)


@settings(max_examples=40)
@given(value=FINITE, count=st.integers(1, 300))
def test_smoothing_leaves_a_straight_line_alone(value: float, count: int) -> None:
    line = [(step, value + step) for step in range(count)]
    smooth = smooth_points(line)
    assert [step for step, _ in smooth] == list(range(count))
    assert [y for _, y in smooth] == pytest.approx([y for _, y in line], rel=1e-6, abs=1e-3)


def test_a_curve_is_broken_where_a_value_was_not_finite() -> None:
    drawn = draw_chart(Chart("Loss", "", (Line("", [(0, 1.0), (10, 2.0), (20, None), (30, 1.0)]),)))
    assert drawn.count('<path class="accent"') == 2


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (-0.5, "−0.5"),
        (2e-5, "2e−5"),
        (30000, "30k"),
        (1_500_000, "1.5M"),
        (900, "900"),
    ],
)
def test_values_are_short(value: float, words: str) -> None:
    assert format_short(value) == words


# Points


def test_points_with_intervals_lie_inside_their_axes() -> None:
    points = [(0.9, 0.1), (0.2, 0.8)]
    line = Line(
        "", points, intervals=[(-0.4, 0.3), (0.7, 1.9)], x_intervals=[(0.5, 1.4), (-0.3, 0.4)], names="ab"
    )
    drawn = draw_chart(Chart("Both", "", [line], x_label="reference", is_scatter=True))
    for left, right in re.findall(r"M([\d.-]+) [\d.-]+H([\d.-]+)", drawn):
        assert 52 <= float(left) <= float(right) <= 342
    for low, high in re.findall(r"M[\d.-]+ ([\d.-]+)V([\d.-]+)", drawn):
        assert 12 <= float(high) <= float(low) <= 198
    assert drawn.count("<circle") == 2


def test_names_of_points_that_are_close_do_not_lie_on_one_another() -> None:
    names = [f"λ = {k}" for k in range(4)]
    points = [(0.1, 0.5), (0.11, 0.5), (0.12, 0.5), (0.9, 0.5)]
    drawn = draw_chart(
        Chart("Both", "", [Line("", points, names=names)], x_label="reference", is_scatter=True)
    )
    found = re.findall(r'class="name" x="([\d.]+)" y="([\d.]+)"[^>]*>λ', drawn)
    places = [(float(x), float(y)) for x, y in found]
    assert len(places) == 4
    for one, other in itertools.combinations(places, 2):
        assert abs(one[0] - other[0]) > 30 or abs(one[1] - other[1]) > 10


def test_a_chart_over_something_else_than_steps_says_what_for_eyes_and_script() -> None:
    drawn = draw_chart(Chart("Both", "", [Line("text", [(0.0, 1.0), (1.0, 0.5)])], x_label="λ"))
    assert ">λ</text>" in drawn
    assert 'data-across="λ"' in drawn
    assert "data-across" not in draw_chart(Chart("Loss", "", [Line("", [(0, 1.0), (10, 0.5)])]))


# Pictures


@pytest.mark.parametrize("room", [3_000, 20_000, 10**6])
def test_an_embedded_picture_fits_into_its_room(room: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    picture = embed_picture(Image.fromarray(noise), room)
    assert picture.source.startswith("data:image/jpeg;base64,")
    assert len(picture.source) <= room * 4 / 3 + 40
    assert (picture.width, picture.height) == (200, 120)
