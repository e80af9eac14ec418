"""The paper's figures in miniature, with unseen characters; each function makes one figure."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import (
    StableDiffusionImg2ImgPipeline,
)
from PIL import Image

from imprompt import mini
from imprompt.lab.figures.figure import Figure, build_figure
from imprompt.lab.figures.images import FigureImages, require, sample_suitable
from imprompt.lab.figures.measures import (
    Pictures,
    find_edges,
    measure_closeness,
    measure_correlations,
    measure_edge_correlations,
    measure_seed_differences,
)
from imprompt.lab.suite.structure import draw_line_pictures, measure_line_shares
from imprompt.lab.suite.subjects import CHANGES

COLORS = ("hair", "skin", "clothes", "ground")
SHAPES = ("hairdo", "expression", "glasses", "beard")
HEAD = ("hair", "hairdo", "glasses")
"""Attributes that the upper part of an image shows."""

HEAD_SHARE = 5 / 8
"""The masked upper part's share of an image's height: whole cells of the latents."""

HIDDEN = (150, 152, 156)
"""The color of the masked part, RGB."""

TEXT_SCALES = {"sunglasses": 1.0, "pixel-art": 0.75, "red ground": 1.0}
"""λ for each text."""

STRENGTHS = (0.5, 0.7, 0.9)
"""The strengths of image to image."""


def draw_variations(images: FigureImages) -> Figure:
    """Draw image prompts alone, with several seeds."""
    columns = {"image prompt": images.drawings, "no image prompt": images.unprompted}
    columns |= {f"seed {number}": seed for number, seed in enumerate(images.seeds)}
    kept = np.mean([images.measure_kept(seed) for seed in images.seeds], axis=0)
    differ = measure_seed_differences(images.seeds)
    numbers = {
        "kept": (kept, images.measure_kept(images.unprompted)),
        "differ": (differ, np.zeros_like(differ)),
    }
    return build_figure("variations", columns, numbers)


def draw_text_figure(images: FigureImages) -> Figure:
    """Draw image prompt and text together, for characters of which every text asks something new."""
    subjects = sample_suitable(list(CHANGES.values()), images.settings.subjects)
    few = FigureImages(images.models, images.settings, subjects)
    columns: dict[str, Pictures] = {"image prompt": few.drawings, "no text": few.alone}
    numbers = {}
    for name, change in CHANGES.items():
        plain = few.generate(change=change)
        both = few.generate(few.build_prompts(scale=TEXT_SCALES[name]), change=change)
        columns |= {f"“{change.text}” alone": plain, f"“{change.text}”, scale {TEXT_SCALES[name]:g}": both}
        key = name.replace(" ", "-")
        numbers[key] = (few.measure_present(both, change), few.measure_present(few.alone, change))
        numbers[f"{key}-kept"] = (few.measure_kept(both, change), few.measure_kept(plain, change))
    return build_figure("text", columns, numbers)


def draw_fine_tuned(images: FigureImages) -> Figure:
    """Draw with the same adapter on a base fine-tuned on line drawings."""
    base = require(images.models.fine_tuned, "fine-tuned base")
    plain, prompted = images.generate(pipe=base), images.generate(images.build_prompts(), pipe=base)
    lines = [one for drawing in images.drawings for one in draw_line_pictures([drawing])]
    columns = {
        "image prompt": images.drawings,
        "image prompt as a line drawing": lines,
        "plain base": images.alone,
        "fine-tuned, no image prompt": plain,
        "fine-tuned": prompted,
    }
    numbers = {
        "shapes": (measure_correlations(prompted, lines), measure_correlations(plain, lines)),
        "lines": (measure_line_shares(prompted), measure_line_shares(images.alone)),
    }
    return build_figure("fine-tuned", columns, numbers)


def draw_control(images: FigureImages) -> Figure:
    """Draw with a ControlNet of edges and an image prompt."""
    controlnet = require(images.models.controlnet, "ControlNet")
    pipe = mini.as_pipeline(StableDiffusionControlNetPipeline, images.models.pipe, controlnet=controlnet)
    edges = find_edges(images.partner_drawings)
    plain = images.generate(pipe=pipe, image=edges)
    both = images.generate(images.build_prompts(), pipe=pipe, image=edges)
    columns = {
        "image prompt": images.drawings,
        "picture for edges": images.partner_drawings,
        "its edges": edges,
        "image prompt alone": images.alone,
        "edges alone": plain,
        "both": both,
    }
    numbers = {
        "colors": (images.measure_ownership(both, COLORS), images.measure_ownership(plain, COLORS)),
        "edges": (measure_edge_correlations(both, edges), measure_edge_correlations(images.alone, edges)),
    }
    return build_figure("control", columns, numbers)


def draw_image_to_image(images: FigureImages) -> Figure:
    """Draw from another picture."""
    starts, edges = images.partner_drawings, find_edges(images.partner_drawings)
    pipe = mini.as_pipeline(StableDiffusionImg2ImgPipeline, images.models.pipe)
    made = [
        images.generate(images.build_prompts(), pipe=pipe, image=starts, strength=one) for one in STRENGTHS
    ]
    plain = images.generate(pipe=pipe, image=starts, strength=STRENGTHS[1])
    columns = {
        "image prompt": images.drawings,
        "start": starts,
        f"no image prompt, strength {STRENGTHS[1]}": plain,
        **{f"strength {one}": pictures for one, pictures in zip(STRENGTHS, made, strict=True)},
    }
    numbers = {
        "colors": (images.measure_ownership(made[1], COLORS), images.measure_ownership(plain, COLORS)),
        "edges": (measure_edge_correlations(made[1], edges), measure_edge_correlations(images.alone, edges)),
    }
    return build_figure("image-to-image", columns, numbers)


def draw_inpainting(images: FigureImages) -> Figure:
    """Draw the upper part again."""
    pictures, size = images.partner_drawings, images.size
    height = round(HEAD_SHARE * size)
    mask = Image.new("L", (size, size))
    mask.paste(255, (0, 0, size, height))
    inputs: dict[str, Any] = {"pipe": mini.as_pipeline(mini.InpaintPipeline, images.models.pipe)}
    inputs |= {"image": pictures, "mask_image": [mask] * len(pictures), "strength": 1.0}
    inputs |= {"width": size, "height": size}
    plain, painted = images.generate(**inputs), images.generate(images.build_prompts(), **inputs)
    cover, rest = Image.new("RGB", (size, size), HIDDEN), (0, height, size, size)
    columns = {
        "image prompt": images.drawings,
        "picture": pictures,
        "masked": [Image.composite(cover, picture, mask) for picture in pictures],
        "painted, no image prompt": plain,
        "painted": painted,
    }
    numbers = {
        "head": (images.measure_ownership(painted, HEAD), images.measure_ownership(plain, HEAD)),
        "outside": (
            measure_closeness(painted, pictures, rest),
            measure_closeness(images.alone, pictures, rest),
        ),
    }
    return build_figure("inpainting", columns, numbers)


def draw_fine_grained(images: FigureImages) -> Figure:
    """Draw with tokens of the grid of features, and with tokens of one embedding."""
    plus, edges = require(images.models.plus, "adapter mini-plus"), find_edges(images.drawings)
    grid = [images.generate(images.build_prompts(), adapter=plus, seed=seed) for seed in range(2)]
    few, many = images.models.adapter.projection.tokens, plus.projection.tokens
    columns = {"image prompt": images.drawings}
    columns |= {f"{few} tokens, seed {seed}": images.seeds[seed] for seed in range(2)}
    columns |= {f"{many} tokens of the grid, seed {seed}": grid[seed] for seed in range(2)}
    numbers = {
        "edges": (measure_edge_correlations(grid[0], edges), measure_edge_correlations(images.alone, edges)),
        "kept": (images.measure_kept(grid[0]), images.measure_kept(images.unprompted)),
    }
    return build_figure("fine-grained", columns, numbers)


def draw_mixing(images: FigureImages) -> Figure:
    """Draw two image prompts in one image: both everywhere, and one above the other."""
    both = images.generate(images.build_prompts(scale=0.5), images.build_prompts(images.partners, scale=0.5))
    above = torch.zeros(images.size, images.size)
    above[: round(HEAD_SHARE * images.size)] = 1
    stacked = images.generate(
        images.build_prompts(mask=above), images.build_prompts(images.partners, mask=1 - above)
    )
    alone, other = images.alone, images.generate(images.build_prompts(images.partners))
    columns = {
        "first": images.drawings,
        "second": images.partner_drawings,
        "first alone": alone,
        "second alone": other,
        "half of each": both,
        "head of the first, rest of the second": stacked,
    }
    owners, clothes = images.partners, ["clothes"]
    either, neither = (
        images.measure_ownership(x) + images.measure_ownership(x, owners=owners)
        for x in (both, images.unprompted)
    )
    numbers = {
        "either": (either, neither),
        "first": (images.measure_ownership(both), images.measure_ownership(other)),
        "second": (
            images.measure_ownership(both, owners=owners),
            images.measure_ownership(alone, owners=owners),
        ),
        "head": (images.measure_ownership(stacked, HEAD), images.measure_ownership(other, HEAD)),
        "clothes": (
            images.measure_ownership(stacked, clothes, owners),
            images.measure_ownership(alone, clothes, owners),
        ),
    }
    return build_figure("mixing", columns, numbers)


def draw_style_and_layout(images: FigureImages) -> Figure:
    """Draw colors of one image prompt and shapes of another, by the layers on which they act."""
    style, layout = (
        images.build_prompts(layers="style"),
        images.build_prompts(images.partners, layers="composition"),
    )
    colors, shapes, both = images.generate(style), images.generate(layout), images.generate(style, layout)
    columns = {
        "colors from": images.drawings,
        "shapes from": images.partner_drawings,
        "colors alone": colors,
        "shapes alone": shapes,
        "both": both,
    }
    owners = images.partners
    numbers = {
        "colors": (images.measure_ownership(both, COLORS), images.measure_ownership(shapes, COLORS)),
        "shapes": (
            images.measure_ownership(both, SHAPES, owners),
            images.measure_ownership(colors, SHAPES, owners),
        ),
    }
    return build_figure("style-and-layout", columns, numbers)


PANELS: tuple[Callable[[FigureImages], Figure], ...] = (
    draw_variations,
    draw_text_figure,
    draw_fine_tuned,
    draw_control,
    draw_image_to_image,
    draw_inpainting,
    draw_fine_grained,
    draw_mixing,
    draw_style_and_layout,
)
"""The figures in the page's order; the overview precedes them and is made of them."""


OVERVIEW = {
    "variations": "kept",
    "text": "red-ground",
    "control": "colors",
    "image-to-image": "colors",
    "inpainting": "head",
}
"""Figure → its number that counts for the overview too."""


def draw_overview(images: FigureImages, figures: Mapping[str, Figure]) -> Figure:
    """Show the uses of an image prompt: other figures' rows in one sheet, and a number of each."""
    control, start, painted = (figures[name].columns for name in ("control", "image-to-image", "inpainting"))
    change, scale = CHANGES["red ground"], TEXT_SCALES["red ground"]
    columns = {
        "image prompt": images.drawings,
        "variation": images.alone,
        f"“{change.text}”": images.generate(images.build_prompts(scale=scale), change=change),
        "edges": control["its edges"],
        "with edges": control["both"],
        "start": start["start"],
        "image to image": start[f"strength {STRENGTHS[1]}"],
        "masked": painted["masked"],
        "painted": painted["painted"],
    }
    return Figure("overview", columns, {name: figures[name].criteria[key] for name, key in OVERVIEW.items()})
