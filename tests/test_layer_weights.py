"""Layer weights: the modes' sets against the published tables, curves by hand, free weights, refusals."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tiny
from imprompt import mini
from imprompt.attention.layer_weights import (
    Convention,
    LayerWeights,
    find_spatial_transformers,
    layer_weights,
    list_modes,
    plot_layers,
)
from imprompt.attention.layer_weights.modes import CONVENTIONS, OWN_MODES
from imprompt.attention.layers import find_cross_attention_layers
from imprompt.errors import InvalidReference
from test_counts import SD15, SDXL, unet


def names_of(model: UNet2DConditionModel) -> dict[int, str]:
    return {number: name for number, (name, _) in find_cross_attention_layers(model).items()}


def mini_unet() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(
            **json.loads((mini.WEIGHTS / "base" / "unet" / "config.json").read_text())
        )


NAMES = {
    "sd15": names_of(unet(SD15)),
    "sdxl": names_of(unet(SDXL)),
    "mini": names_of(mini_unet()),
    "tiny": names_of(tiny.sd_unet()),
}
CURVES = ["ease in", "ease out", "ease in-out", "reverse in-out"]
SECTIONS = ["weak input", "weak middle", "weak output", "strong middle"]


def by_transformer(weights: Mapping[int, float], base: str) -> dict[int, float]:
    """t → weight, where it is not 0; all layers of a transformer must agree."""
    found = {}
    for t, transformer in enumerate(find_spatial_transformers(NAMES[base])):
        (value,) = {weights.get(number, 0.0) for number in transformer.layers}
        found |= {t: value} if value else {}
    return found


def ones(*transformers: int) -> dict[int, float]:
    return dict.fromkeys(transformers, 1.0)


# Transformers


def test_sdxl_transformers_stand_as_published() -> None:
    transformers = find_spatial_transformers(NAMES["sdxl"])
    assert [len(one.layers) for one in transformers] == [2, 2, 10, 10, 10, 10, 10, 10, 2, 2, 2]
    assert transformers[3].name == "down_blocks.2.attentions.1"
    assert transformers[4].name == "mid_block.attentions.0"
    assert transformers[6].name == "up_blocks.0.attentions.1"
    assert transformers[10].name == "up_blocks.1.attentions.2"


def test_sd15_transformers_stand_as_published() -> None:
    transformers = find_spatial_transformers(NAMES["sd15"])
    assert [one.section for one in transformers] == ["down"] * 6 + ["mid"] + ["up"] * 9
    assert transformers[5].name == "down_blocks.2.attentions.1"
    assert transformers[6].layers == (31,)
    assert transformers[10].name == "up_blocks.2.attentions.0"


def test_the_order_of_blocks_is_that_of_numbers_not_of_letters() -> None:
    names = {2 * n + 1: f"up_blocks.{n}.attentions.0.transformer_blocks.0.attn2" for n in (10, 9, 2)}
    assert [one.layers for one in find_spatial_transformers(names)] == [(5,), (19,), (21,)]


# Modes


@pytest.mark.parametrize("base", NAMES)
def test_full_is_one_in_every_layer(base: str) -> None:
    assert layer_weights("full", NAMES[base]) == LayerWeights(dict.fromkeys(NAMES[base], 1.0), {})


@pytest.mark.parametrize(
    ("convention", "base", "mode", "follow", "avoid"),
    [
        ("comfy", "sdxl", "style", ones(6), {}),
        ("comfy", "sdxl", "composition", ones(3), {}),
        ("comfy", "sdxl", "strong style", ones(0, 1, 2, 4, 5, 6, 7, 8, 9, 10), {}),
        ("comfy", "sdxl", "precise style", ones(6), ones(3)),
        (
            *("comfy", "sdxl", "precise composition", ones(3)),
            {0: 0.1, 1: 0.1, 2: 0.1, 4: 0.1, 5: 0.1, 6: 1.0, 7: 0.1, 8: 0.1, 9: 0.1, 10: 0.1},
        ),
        ("comfy", "sd15", "style", ones(0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15), {}),
        ("comfy", "sd15", "composition", {4: 0.25, 5: 1.0}, {}),
        ("comfy", "sd15", "strong style", ones(0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), {}),
        ("comfy", "sd15", "precise style", ones(0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15), ones(4, 5)),
        (
            *("comfy", "sd15", "precise composition", ones(4, 5)),
            ones(0, 1, 2, 3, 9, 10, 11, 12, 13, 14, 15) | {6: 0.1, 7: 0.1, 8: 0.1},
        ),
        ("invoke", "sdxl", "style", ones(6), {}),
        ("invoke", "sdxl", "composition", ones(3), {}),
        ("invoke", "sdxl", "strong style", ones(0, 1, 2, 5, 6, 7, 8, 9, 10), {}),
        ("invoke", "sdxl", "precise style", ones(6), ones(3)),
        ("invoke", "sd15", "style", ones(7, 8, 9), {}),
        ("invoke", "sd15", "composition", ones(4, 5, 6), {}),
        ("invoke", "sd15", "strong style", ones(0, 1, 2, 3, 7, 8, 9, 10, 11, 12), {}),
        ("invoke", "sd15", "precise style", ones(7, 8, 9), ones(4, 5, 6)),
        ("instantstyle", "sdxl", "style", ones(6), {}),
        ("instantstyle", "sdxl", "composition", ones(3), {}),
        ("instantstyle", "sd15", "style", ones(7, 8, 9), {}),
    ],
)
def test_a_mode_is_the_published_set(
    convention: Convention, base: str, mode: str, follow: dict[int, float], avoid: dict[int, float]
) -> None:
    weights = layer_weights(mode, NAMES[base], convention=convention)
    assert by_transformer(weights.follow, base) == follow
    assert by_transformer(weights.avoid, base) == avoid


def test_the_published_sets_are_all_the_sets_there_are() -> None:
    counts = {(name, base): len(m) for name, bases in CONVENTIONS.items() for base, m in bases.items()}
    assert list(counts.values()) == [5, 5, 4, 4, 2, 1]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("base", NAMES)
def test_a_layer_that_avoids_does_not_follow(base: str, convention: Convention) -> None:
    for mode in list_modes(NAMES[base], convention=convention):
        follow, avoid = layer_weights(mode, NAMES[base], convention=convention)
        assert follow.keys() == NAMES[base].keys()
        assert avoid.keys() <= follow.keys()
        assert not any(follow[number] for number in avoid)
        assert any(follow.values())


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_embedded_model_has_its_own_modes_in_every_convention(convention: Convention) -> None:
    names = NAMES["mini"]
    assert list_modes(names, convention=convention)[-5:] == list(OWN_MODES["mini"])
    style = by_transformer(layer_weights("style", names, convention=convention).follow, "mini")
    composition = by_transformer(layer_weights("composition", names, convention=convention).follow, "mini")
    assert not style.keys() & composition.keys()


# Curves


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        # 0.05 + 0.95 (1 - t/11) and so on, computed by hand for t = 0, 1, 5, 10 of 11.
        ("ease in", (1.0, 0.913636, 0.568182, 0.136364)),
        ("ease out", (0.05, 0.136364, 0.481818, 0.913636)),
        ("ease in-out", (0.05, 0.222727, 0.913636, 0.222727)),
        ("reverse in-out", (1.0, 0.827273, 0.136364, 0.827273)),
    ],
)
def test_curves_on_sdxl_by_hand(curve: str, expected: tuple[float, ...]) -> None:
    curves = by_transformer(layer_weights(curve, NAMES["sdxl"]).follow, "sdxl")
    assert [curves[t] for t in (0, 1, 5, 10)] == pytest.approx(expected, abs=1e-6)


def test_in_out_peaks_and_reverse_dips_at_the_middle_of_sd15() -> None:
    peak = by_transformer(layer_weights("ease in-out", NAMES["sd15"]).follow, "sd15")
    valley = by_transformer(layer_weights("reverse in-out", NAMES["sd15"]).follow, "sd15")
    assert max(peak, key=peak.__getitem__) == min(valley, key=valley.__getitem__) == 8
    assert (peak[8], valley[8]) == pytest.approx((1.0, 0.05))


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize("pair", [("ease in", "ease out"), ("ease in-out", "reverse in-out")])
def test_opposite_curves_add_up_to_the_same_everywhere(base: str, pair: tuple[str, str]) -> None:
    one, other = (layer_weights(curve, NAMES[base]).follow for curve in pair)
    assert all(one[number] + other[number] == pytest.approx(1.05) for number in NAMES[base])


@pytest.mark.parametrize("base", NAMES)
@pytest.mark.parametrize(
    ("curve", "down", "mid", "up"),
    [
        ("weak input", 0.2, 1.0, 1.0),
        ("weak middle", 1.0, 0.2, 1.0),
        ("weak output", 1.0, 1.0, 0.2),
        ("strong middle", 0.2, 1.0, 0.2),
    ],
)
def test_sections_are_weakened(base: str, curve: str, down: float, mid: float, up: float) -> None:
    follow = layer_weights(curve, NAMES[base]).follow
    wanted = {"down_blocks": down, "mid_block": mid, "up_blocks": up}
    assert follow == {number: wanted[name.split(".")[0]] for number, name in NAMES[base].items()}


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("base", NAMES)
def test_every_base_has_the_curves_in_every_convention(base: str, convention: Convention) -> None:
    names = list_modes(NAMES[base], convention=convention)
    assert names[:9] == ["full", *CURVES, *SECTIONS]


# Free weights


@pytest.mark.parametrize(
    ("key", "layers"),
    [
        ("up_blocks.1", [13, 15, 17]),
        ("up_blocks.1.attentions.2", [17]),
        ("up_blocks.1.attentions.2.transformer_blocks.0.attn2", [17]),
        ("mid_block", [31]),
        ("mid", [31]),
        ("down", [1, 3, 5, 7, 9, 11]),
        ("down_blocks", [1, 3, 5, 7, 9, 11]),
        (6, [31]),
        ("6", [31]),
        (15, [29]),
    ],
)
def test_a_key_names_layers(key: str | int, layers: list[int]) -> None:
    follow, avoid = layer_weights({key: 0.5}, NAMES["sd15"])
    assert [number for number, weight in follow.items() if weight] == layers
    assert {follow[number] for number in layers} == {0.5}
    assert follow.keys() == NAMES["sd15"].keys()
    assert avoid == {}


def test_a_prefix_ends_at_a_dot() -> None:
    names = {1: "up_blocks.1.attentions.0.attn2", 3: "up_blocks.10.attentions.0.attn2"}
    assert layer_weights({"up_blocks.1": 1.0}, names).follow == {1: 1.0, 3: 0.0}


def test_the_longer_name_wins_in_any_order() -> None:
    some = {"up": 1, "up_blocks.1": 0.5, 8: -0.25, "up_blocks.1.attentions.2": 0}
    for keys in (list(some), list(reversed(some))):
        follow = layer_weights({key: some[key] for key in keys}, NAMES["sd15"]).follow
        assert [follow[number] for number in (11, 13, 15, 17, 19)] == [0.0, 0.5, -0.25, 0.0, 1.0]


@settings(max_examples=20)
@given(st.dictionaries(st.integers(0, 10), st.floats(-2, 2, width=16), min_size=1))
def test_numbers_and_names_of_transformers_mean_the_same(weights: dict[int, float]) -> None:
    assume(any(weights.values()))
    transformers = find_spatial_transformers(NAMES["sdxl"])
    named = {transformers[t].name: weight for t, weight in weights.items()}
    assert layer_weights(weights, NAMES["sdxl"]) == layer_weights(named, NAMES["sdxl"])


# Refusals


@pytest.mark.parametrize(
    ("layers", "base", "convention", "words"),
    [
        ("stile", "sd15", "comfy", "no mode 'stile' for SD1.5 and SD2.x in the convention 'comfy' "
         "(did you mean 'style'?); there are full, ease in, ease out, ease in-out, reverse in-out, weak "
         "input, weak middle, weak output, strong middle, style, strong style, precise style, composition, "),
        ("composition", "sd15", "instantstyle", "no mode 'composition' for SD1.5 and SD2.x in the convention "
         "'instantstyle'; there are full,"),
        ("precise composition", "sdxl", "invoke", "(did you mean 'composition'?)"),
        ("strong composition", "sdxl", "comfy", "(did you mean 'composition'?)"),
        ("style and composition", "mini", "comfy", "no mode 'style and composition' for mini"),
        ("style", "tiny", "comfy", "which layers are 'style' is not known for a base of 4 spatial "
         "transformers; give weights by block name or number, or one of full, ease in,"),
        ("ease-in", "tiny", "comfy", "no mode 'ease-in' for this base (did you mean 'ease in'?)"),
        ({}, "sd15", "comfy", "layers={} switches every layer off"),
        ({"up": 0.0, 3: 0}, "sd15", "comfy", "layers={'up': 0.0, 3: 0} switches every layer off"),
        ({"mid": 1.0, 6: 0.0}, "sd15", "comfy", "layers={'mid': 1.0, 6: 0.0} switches every layer off"),
        ({"up_blocks.4": 1.0}, "sd15", "comfy", "no layers 'up_blocks.4' (did you mean 'up_blocks."),
        ({"up_block": 1.0}, "sd15", "comfy", "(did you mean 'up_blocks'?); its blocks are down_blocks.0, "
         "down_blocks.1, down_blocks.2, mid_block, up_blocks.1, up_blocks.2, up_blocks.3"),
        ({"": 1.0}, "sd15", "comfy", "this base has no layers ''"),
        ({16: 1.0}, "sd15", "comfy", "this base has no spatial transformer 16; it has 0 to 15"),
        ({-1: 1.0}, "sd15", "comfy", "no spatial transformer -1"),
        ({"11": 1.0}, "sdxl", "comfy", "no spatial transformer '11'; it has 0 to 10"),
        ({True: 1.0}, "sd15", "comfy", "not True"),
        ({"up": float("nan")}, "sd15", "comfy", "the weight of layers 'up' must be a finite number, not nan"),
        ({"up": 1.0, "mid": float("inf")}, "sd15", "comfy", "the weight of layers 'mid' must be"),
        ({"up": 1.0, "up_blocks": 1.0}, "sd15", "comfy", "layers 'up' and 'up_blocks' are both up_blocks"),
        ({6: 1.0, "up_blocks.0.attentions.1": 1.0}, "sdxl", "comfy", "6 and 'up_blocks.0.attentions.1'"),
        ({6: 1.0, "6": 1.0}, "sdxl", "comfy", "layers 6 and '6' are both up_blocks.0.attentions.1"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_by_name(
    layers: Any, base: str, convention: Convention, words: str
) -> None:
    with pytest.raises(InvalidReference) as caught:
        layer_weights(layers, NAMES[base], convention=convention)
    assert words in str(caught.value)


# The picture


@pytest.mark.parametrize("layers", ["full", "ease in", "precise style", {3: 1.5, "up_blocks.0": -0.5}])
def test_the_plot_shows_the_section_and_the_sign_of_every_bar(layers: Any) -> None:
    weights = layer_weights(layers, NAMES["sdxl"])
    shown = by_transformer(weights.follow, "sdxl")
    avoided = by_transformer(weights.avoid, "sdxl")
    picture = plot_layers(layers, NAMES["sdxl"])
    zero = next(y for y in range(104, picture.height) if picture.getpixel((105, y)) == (0x22, 0x22, 0x22))
    colours = {"down": (0x44, 0x77, 0xAA), "mid": (0xCC, 0xAA, 0x33), "up": (0x22, 0x88, 0x33)}
    for t, transformer in enumerate(find_spatial_transformers(NAMES["sdxl"])):
        x = 104 + 16 + 72 * t + 3
        above, below = picture.getpixel((x, zero - 3)), picture.getpixel((x, zero + 3))
        colour = colours[transformer.section]
        assert (above == colour) == (shown.get(t, 0.0) > 0)
        assert (below == colour) == (shown.get(t, 0.0) < 0)
        assert (below == (0xCC, 0x33, 0x55)) == (t in avoided)


def test_bars_are_as_high_as_their_weights() -> None:
    picture = plot_layers("ease in", NAMES["sdxl"])
    blue = [picture.getpixel((104 + 16 + 72 + 3, y)) for y in range(picture.height)].count((0x44, 0x77, 0xAA))
    assert blue == pytest.approx(260 * 0.913636, abs=1.5)


def test_the_plot_divides_a_bar_whose_layers_differ() -> None:
    name = "down_blocks.2.attentions.1.transformer_blocks.{}.attn2"
    picture = plot_layers({name.format(0): 1.0, name.format(9): 1.0}, NAMES["sdxl"])
    row = [picture.getpixel((104 + 16 + 72 * 3 + x, 300)) == (0x44, 0x77, 0xAA) for x in range(56)]
    assert row[2]
    assert not any(row[8:48])
    assert row[53]


def test_the_plot_refuses_what_layer_weights_refuses() -> None:
    with pytest.raises(InvalidReference, match="did you mean 'style'"):
        plot_layers("styl", NAMES["sdxl"])
