"""A plot of layer weights, with a bar for every spatial transformer."""

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from imprompt.attention.layer_weights.modes import EVERYWHERE, OWN_MODES, Convention
from imprompt.attention.layer_weights.transformers import (
    LayerNames,
    SpatialTransformer,
    family,
    find_spatial_transformers,
)
from imprompt.attention.layer_weights.weights import Layers, layer_weights

_COLORS = {"down": "#4477aa", "mid": "#ccaa33", "up": "#228833"}
_AVOID, _INK, _GRAY, _FAINT = "#cc3355", "#222222", "#888888", "#e0e0e0"

# Pixels.
_BAR, _GAP = 56, 16
_LEFT, _TOP, _HEIGHT, _BOTTOM = 104, 104, 260, 84
_NARROWEST = 640


def plot_layers(layers: Layers, layer_names: LayerNames, *, convention: Convention = "comfy") -> Image.Image:
    """Plot the result of `layer_weights`: a bar for every spatial transformer, in running order.

    Bars of layers that follow the reference have the color of their section. Red bars go down, for layers
    that avoid it (with a boost of 1). A bar is divided among its layers where they differ.

    Args:
        layers: as in `layer_weights`
        layer_names: as in `layer_weights`
        convention: as in `layer_weights`

    Raises:
        InvalidReference: as `layer_weights`
    """
    weights = layer_weights(layers, layer_names, convention=convention)
    transformers = find_spatial_transformers(layer_names)
    values = weights.follow | {number: -weight for number, weight in weights.avoid.items()}
    plot = _Plot(len(transformers), min(0.0, *values.values()), max(1.0, *values.values()))
    plot.title(_title(layers, transformers, convention), avoids=bool(weights.avoid))
    for t, transformer in enumerate(transformers):
        numbers, color = transformer.layers, _COLORS[transformer.section]
        plot.bar(t, [(values[n], _AVOID if n in weights.avoid else color) for n in numbers])
        plot.name(t, transformer.name)
    return plot.picture


def _title(layers: Layers, transformers: Sequence[SpatialTransformer], convention: str) -> str:
    base = family(transformers) or f"a base of {len(transformers)} spatial transformers"
    if isinstance(layers, Mapping):
        return f"Free weights on {base}"
    same_everywhere = layers in EVERYWHERE or base in OWN_MODES
    return f'"{layers}" on {base}' + ("" if same_everywhere else f", as in {convention}")


class _Plot:
    """The picture of a plot. The default font has no Greek letters and no proper minus.

    Args:
        count: the number of bars
        low: the lowest value, 0 or less
        high: the highest value, 1 or more
    """

    def __init__(self, count: int, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.right = _LEFT + count * (_BAR + _GAP) + _GAP
        self.under = _TOP + _HEIGHT + (36 if low < 0 else 16)
        size = max(self.right + _GAP, _NARROWEST), self.under + _BOTTOM
        self.picture = Image.new("RGB", size, "white")
        self.draw = ImageDraw.Draw(self.picture)
        self._axis()

    def title(self, text: str, *, avoids: bool) -> None:
        """Write the title and the meaning of the colors."""
        self._text(_LEFT, 16, text, size=20, anchor="lt")
        x = float(_LEFT)
        for meaning, color in {**_COLORS, **({"avoids (boost 1)": _AVOID} if avoids else {})}.items():
            self.draw.rectangle((x, 53, x + 13, 66), fill=color)
            self._text(x + 22, 60, meaning, anchor="lm")
            x += 46 + self.draw.textlength(meaning, font=_font(14))

    def bar(self, t: int, layers: Sequence[tuple[float, str]]) -> None:
        """Draw the bar of transformer t from (value, color) of each layer; write the value if it is one."""
        width = _BAR / len(layers)
        for place, (value, color) in enumerate(layers):
            left = self._x(t) + place * width
            upper, lower = sorted((self._y(value), self._y(0.0)))
            if value:
                self.draw.rectangle((round(left), upper, round(left + width) - 1, lower), fill=color)
        if len({value for value, _ in layers}) == 1:
            self._value(t, layers[0][0])

    def name(self, t: int, name: str) -> None:
        """Write t and the module's name below the bar."""
        block, _, attention = name.partition(".attentions.")
        section = block.replace("_blocks.", " ").replace("_block", "")
        for line, text in enumerate((str(t), section, attention)):
            self._below(line, self._x(t) + _BAR / 2, text, anchor="mt")

    def _value(self, t: int, value: float) -> None:
        anchor, shift = ("mt", 6) if value < 0 else ("ms", -5)
        color, words = (_INK, f"{value:.3g}") if value else (_GRAY, "off")
        self._text(self._x(t) + _BAR / 2, self._y(value) + shift, words, anchor=anchor, color=color)

    def _axis(self) -> None:
        span = self.high - self.low
        step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, span / 4) if span / step <= 8)
        for tick in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            y = self._y(tick * step)
            self.draw.line((_LEFT, y, self.right, y), fill=_FAINT if tick else _INK)
            self._text(_LEFT - 8, y, f"{tick * step:g}", anchor="rm")
        self._text(_LEFT - 8, _TOP - 26, "weight", anchor="rm", color=_GRAY)
        for line, text in enumerate(("transformer", "block", "attention")):
            self._below(line, _LEFT - 8, text, anchor="rt", color=_GRAY)

    def _below(self, line: int, x: float | int, text: str, *, anchor: str, color: str = _INK) -> None:
        self._text(x, self.under + 22 * line, text, anchor=anchor, color=color)

    def _x(self, t: int) -> int:
        return _LEFT + _GAP + t * (_BAR + _GAP)

    def _y(self, value: float | int) -> int:
        return round(_TOP + _HEIGHT * (self.high - value) / (self.high - self.low))

    def _text(
        self, x: float | int, y: float | int, text: str, *, anchor: str, size: int = 14, color: str = _INK
    ) -> None:
        self.draw.text((x, y), text, fill=color, font=_font(size), anchor=anchor)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
