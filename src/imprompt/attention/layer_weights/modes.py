"""The named modes as data: which spatial transformers follow the reference, and which avoid it.

Systems use the same words for different layers, so the user chooses a convention by name:

- "comfy": the weight types of ComfyUI_IPAdapter_plus (as of 2025-02-26); its "style transfer" is "style" here
- "invoke": the modes of InvokeAI (2026-08-19)
- "instantstyle": the blocks of InstantStyle (Wang et al. 2024, https://arxiv.org/abs/2404.02733; the code of
  2024-09-18); it names no set for the layout alone on SD1.5

On SDXL all three agree about style and composition. On SD1.5 the "style" of comfy and that of the others
have only t = 9 in common. "full" and the curves (comfy's) are formulas for any base, in every convention.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from imprompt.attention.layer_weights.transformers import Section

Convention = Literal["comfy", "invoke", "instantstyle"]


class Mode(NamedTuple):
    """Transformer number t → weight; a transformer in neither mapping is off."""

    follow: Mapping[int, float]
    """Factor on λ."""
    avoid: Mapping[int, float] = {}
    """Factor on the boost."""


CURVES: dict[str, Callable[[float], float]] = {
    "ease in": lambda depth: 0.05 + 0.95 * (1 - depth),
    "ease out": lambda depth: 0.05 + 0.95 * depth,
    "ease in-out": lambda depth: 0.05 + 0.95 * (1 - abs(2 * depth - 1)),
    "reverse in-out": lambda depth: 0.05 + 0.95 * abs(2 * depth - 1),
}
"""Name → the weight of transformer t of T at depth t/T, which is 0 for the first and below 1 for the last."""

WEAK_SECTIONS: dict[str, tuple[Section, ...]] = {
    "weak input": ("down",),
    "weak middle": ("mid",),
    "weak output": ("up",),
    "strong middle": ("down", "up"),
}
"""The sections with weight 0.2; the others have 1."""

EVERYWHERE = ("full", *CURVES, *WEAK_SECTIONS)
"""The modes that every U-Net has in every convention."""


def _on(*transformers: int | range, weight: float = 1.0) -> dict[int, float]:
    """Return the same weight for transformers and ranges of them."""
    numbers = (range(t, t + 1) if isinstance(t, int) else t for t in transformers)
    return {t: weight for some in numbers for t in some}


_SD_STYLE = _on(range(4), range(9, 16))

CONVENTIONS: dict[str, dict[str, dict[str, Mode]]] = {
    "comfy": {
        "SDXL and Kolors": {
            "style": Mode(_on(6)),
            "strong style": Mode(_on(range(3), range(4, 11))),
            "precise style": Mode(_on(6), avoid=_on(3)),
            "composition": Mode(_on(3)),
            "precise composition": Mode(_on(3), avoid=_on(6) | _on(range(3), 4, 5, range(7, 11), weight=0.1)),
        },
        "SD1.5 and SD2.x": {
            "style": Mode(_SD_STYLE),
            "strong style": Mode(_on(range(4), range(6, 16))),
            "precise style": Mode(_SD_STYLE, avoid=_on(4, 5)),
            "composition": Mode({4: 0.25, 5: 1.0}),
            "precise composition": Mode(_on(4, 5), avoid=_SD_STYLE | _on(range(6, 9), weight=0.1)),
        },
    },
    "invoke": {
        "SDXL and Kolors": {
            "style": Mode(_on(6)),
            "strong style": Mode(_on(range(3), range(5, 11))),
            "precise style": Mode(_on(6), avoid=_on(3)),
            "composition": Mode(_on(3)),
        },
        "SD1.5 and SD2.x": {
            "style": Mode(_on(range(7, 10))),
            "strong style": Mode(_on(range(4), range(7, 13))),
            "precise style": Mode(_on(range(7, 10)), avoid=_on(range(4, 7))),
            "composition": Mode(_on(range(4, 7))),
        },
    },
    "instantstyle": {
        "SDXL and Kolors": {"style": Mode(_on(6)), "composition": Mode(_on(3))},
        "SD1.5 and SD2.x": {"style": Mode(_on(range(7, 10)))},
    },
}
"""Convention → bases → name → mode."""

OWN_MODES: dict[str, dict[str, Mode]] = {
    # Measured (docs/log.md, 2026-11-22): 4 to 6 determine the colors, and 0 most of the shapes. The deep
    # blocks 1 and 2, which determine the layout on large bases, have almost no effect here.
    "mini": {
        "style": Mode(_on(4, 5, 6)),
        "strong style": Mode(_on(range(1, 7))),
        "precise style": Mode(_on(4, 5, 6), avoid=_on(0)),
        "composition": Mode(_on(range(4))),
        "precise composition": Mode(_on(range(4)), avoid=_on(4, 5, 6)),
    },
}
"""Bases that only imprompt knows → name → mode, the same in every convention."""
