"""The methods of the paper's Table 1 as data: which of them diffusers 0.42 can run, and their sources.

The hub ids are those of diffusers' documentation and of the models' pages. No file was downloaded here. The
encoder that conditions a method is the one in its paper or card; `is_self` decides by weights.
"""

from typing import NamedTuple


class PublishedMethod(NamedTuple):
    """A method that can be run.

    Attributes:
        title: its name in Table 1
        model: hub id of its pipeline; of its base, for an adapter
        second: hub id of a second model that it needs
        takes_text: whether a prompt has an effect
        takes_size: whether the size can be chosen
        takes_sampler: whether its sampler can be replaced by DDIM
        note: its particularities, for the page
        paper: CLIP-T and CLIP-I in the paper's Table 1
    """

    title: str
    model: str
    second: str = ""
    takes_text: bool = True
    takes_size: bool = True
    takes_sampler: bool = True
    note: str = ""
    paper: tuple[float, float] | None = None


IP_ADAPTER = "ip-adapter"

METHODS = {
    IP_ADAPTER: PublishedMethod(
        "IP-Adapter", "stable-diffusion-v1-5/stable-diffusion-v1-5", paper=(0.588, 0.828)
    ),
    "unclip": PublishedMethod(
        "Open unCLIP (Karlo)",
        "kakaobrain/karlo-v1-alpha-image-variations",
        takes_text=False,
        takes_size=False,
        takes_sampler=False,
        note="its own sampler, 7 steps of super-resolution, 256 px; conditions on CLIP ViT-L/14",
        paper=(0.608, 0.858),
    ),
    "sd-unclip": PublishedMethod(
        "SD unCLIP",
        "stabilityai/stable-diffusion-2-1-unclip",
        note="768 px by itself; noise level 0",
        paper=(0.584, 0.810),
    ),
    "kandinsky": PublishedMethod(
        "Kandinsky 2.1",
        "kandinsky-community/kandinsky-2-1",
        "kandinsky-community/kandinsky-2-1-prior",
        note="the reference's own CLIP embedding goes to the decoder, the prior's zero embedding is the "
        "negative; 512 px by itself; conditions on CLIP ViT-L/14",
        paper=(0.599, 0.855),
    ),
    "versatile-diffusion": PublishedMethod(
        "Versatile Diffusion",
        "shi-labs/versatile-diffusion",
        takes_text=False,
        note="image variation; its negative is a gray picture; conditions on CLIP ViT-L/14",
        paper=(0.587, 0.830),
    ),
    "sd-image-variations": PublishedMethod(
        "SD image variations",
        "lambdalabs/sd-image-variations-diffusers",
        takes_text=False,
        note="conditions on CLIP ViT-L/14",
        paper=(0.548, 0.760),
    ),
    "controlnet-shuffle": PublishedMethod(
        "ControlNet shuffle",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "lllyasviel/control_v11e_sd15_shuffle",
        note="the reference is shuffled for each sample, by an own function",
        paper=(0.421, 0.616),
    ),
}
"""Name in a configuration → method."""

REFUSED = {
    "t2i-adapter-style": "diffusers has the T2I-Adapters that add to the U-Net's features, and not the style "
    "adapter, which appends tokens to the text",
    "uni-controlnet": "diffusers has no Uni-ControlNet, neither its global adapter nor its weights' layout",
}
"""Rows of Table 1 that diffusers 0.42 cannot run, and why."""
