"""The table of published adapters, and the encoders that they need.

Sources: file names in the published lists of several user interfaces (2024–2026), the licenses in the text of
the model cards quoted there, the encoders in the official code (tencent-ailab/IP-Adapter at 62e4af9) and in
Kwai-Kolors/Kolors, `ipadapter/`; for transformers the code and cards of XLabs-AI, InstantX and
black-forest-labs. No file was downloaded. `note` states what could not be checked.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from imprompt.inputs.choices import Input


class PublishedAdapter(NamedTuple):
    """A published adapter."""

    repository: str
    """Hub id of the repository."""
    file: str
    """Path of the file in the repository."""
    variant: str
    """The variant, as in `Description.variant`."""
    base_family: str
    """The base models, as in `Description.base_family`."""
    encoder: str | None
    """Hub id and folder of the image encoder, "owner/name:folder"; None for an adapter of face embeddings
    only."""
    license: str
    """License of the weights, or "not checked"."""
    face_plus_version: Literal[1, 2] | None = None
    """Version of FaceID-Plus; None for other variants."""
    note: str = ""
    """Purpose of the adapter, and what was not checked."""


class EmbeddedAdapter(NamedTuple):
    """An adapter that is embedded in imprompt.

    Attributes:
        variant: the variant, as in `Description.variant`
        file: file name in the embedded model's folder `adapter`
    """

    variant: str
    file: str


EMBEDDED = {
    "mini": EmbeddedAdapter("base", "ip-adapter.safetensors"),
    "mini-plus": EmbeddedAdapter("plus", "ip-adapter-plus.safetensors"),
}
"""Name → embedded adapter."""

EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "mini" / "weights"
"""The embedded model's shipped weights: `base`, `adapter`, `image_encoder`, `styles`, `control`, `judge`."""

VIT_H = "h94/IP-Adapter:models/image_encoder"
VIT_BIGG = "h94/IP-Adapter:sdxl_models/image_encoder"
VIT_L = "openai/clip-vit-large-patch14"
SIGLIP = "google/siglip-so400m-patch14-384"
VIT_L_336 = "Kwai-Kolors/Kolors-IP-Adapter-Plus:image_encoder"

_OFFICIAL, _FACE = "h94/IP-Adapter", "h94/IP-Adapter-FaceID"
_COMPOSITION, _KOLORS = "ostris/ip-composition-adapter", "Kwai-Kolors/Kolors-IP-Adapter-Plus"
_APACHE = "Apache-2.0"
_RESEARCH = "research only, not for commercial use (it depends on InsightFace's models)"
_SD, _XL, _FLUX = "SD1.5", "SDXL", "FLUX.1"
_FLUX_LICENSE = "FLUX.1 [dev] Non-Commercial License"
_LORA = "with LoRA inside the file"
_FIVE_FACES = "made for about five faces of one person, side by side"

_FACE_CROP, _LAYOUT = "takes the cropped face", "the layout of a picture without its style and content"


def _define_sd15(file: str, variant: str, encoder: str = VIT_H, note: str = "") -> PublishedAdapter:
    return PublishedAdapter(
        _OFFICIAL, f"models/{file}.safetensors", variant, _SD, encoder, _APACHE, note=note
    )


def _define_sdxl(file: str, variant: str, encoder: str = VIT_H, note: str = "") -> PublishedAdapter:
    path = f"sdxl_models/{file}.safetensors"
    return PublishedAdapter(_OFFICIAL, path, variant, _XL, encoder, _APACHE, note=note)


def _define_face(
    file: str, variant: str, base: str, note: str = _LORA, version: Literal[1, 2] | None = None
) -> PublishedAdapter:
    encoder = VIT_H if variant == "faceid-plus" else None
    return PublishedAdapter(_FACE, f"{file}.bin", variant, base, encoder, _RESEARCH, version, note)


def _define_composition(file: str, base: str, note: str) -> PublishedAdapter:
    return PublishedAdapter(_COMPOSITION, f"{file}.safetensors", "plus", base, VIT_H, _APACHE, note=note)


PUBLISHED = {
    "sd15": _define_sd15("ip-adapter_sd15", "base"),
    "sd15-light": _define_sd15("ip-adapter_sd15_light", "base", note="follows the text more than sd15"),
    "sd15-vit-G": _define_sd15("ip-adapter_sd15_vit-G", "base", VIT_BIGG),
    "sd15-plus": _define_sd15("ip-adapter-plus_sd15", "plus"),
    "sd15-plus-face": _define_sd15("ip-adapter-plus-face_sd15", "plus", note=_FACE_CROP),
    "sd15-full-face": _define_sd15("ip-adapter-full-face_sd15", "full-face", note=_FACE_CROP),
    "sd15-composition": _define_composition("ip_plus_composition_sd15", _SD, _LAYOUT),
    "sdxl": _define_sdxl("ip-adapter_sdxl", "base", VIT_BIGG),
    "sdxl-vit-h": _define_sdxl("ip-adapter_sdxl_vit-h", "base"),
    "sdxl-plus": _define_sdxl("ip-adapter-plus_sdxl_vit-h", "plus"),
    "sdxl-plus-face": _define_sdxl("ip-adapter-plus-face_sdxl_vit-h", "plus", note=_FACE_CROP),
    "sdxl-composition": _define_composition(
        "ip_plus_composition_sdxl", _XL, f"{_LAYOUT}; its shapes were not checked"
    ),
    "sd15-faceid": _define_face("ip-adapter-faceid_sd15", "faceid", _SD),
    "sd15-faceid-plus": _define_face("ip-adapter-faceid-plus_sd15", "faceid-plus", _SD, version=1),
    "sd15-faceid-plusv2": _define_face("ip-adapter-faceid-plusv2_sd15", "faceid-plus", _SD, version=2),
    "sd15-faceid-portrait": _define_face(
        "ip-adapter-faceid-portrait_sd15", "faceid-portrait", _SD, _FIVE_FACES
    ),
    "sdxl-faceid": _define_face("ip-adapter-faceid_sdxl", "faceid", _XL),
    "sdxl-faceid-plusv2": _define_face("ip-adapter-faceid-plusv2_sdxl", "faceid-plus", _XL, version=2),
    "sdxl-faceid-portrait": _define_face(
        "ip-adapter-faceid-portrait_sdxl", "faceid-portrait", _XL, _FIVE_FACES
    ),
    "kolors-plus": PublishedAdapter(
        _KOLORS,
        "ip_adapter_plus_general.bin",
        "plus",
        "Kolors",
        VIT_L_336,
        "not checked",
        note="its shapes are as other readers of it expect them; its size was not checked",
    ),
    "flux-xlabs": PublishedAdapter(
        "XLabs-AI/flux-ip-adapter",
        "ip_adapter.safetensors",
        "flux-xlabs",
        _FLUX,
        VIT_L,
        _FLUX_LICENSE,
        note="the example has true guidance 4",
    ),
    "flux-xlabs-v2": PublishedAdapter(
        "XLabs-AI/flux-ip-adapter-v2",
        "ip_adapter.safetensors",
        "flux-xlabs",
        _FLUX,
        VIT_L,
        f"Apache-2.0 by its card; its base is under the {_FLUX_LICENSE}",
        note="16 tokens",
    ),
    "flux-instantx": PublishedAdapter(
        "InstantX/FLUX.1-dev-IP-Adapter",
        "ip-adapter.bin",
        "flux-instantx",
        _FLUX,
        SIGLIP,
        _FLUX_LICENSE,
        note="no negative: with true guidance only the positive branch has the picture",
    ),
    "flux-redux": PublishedAdapter(
        "black-forest-labs/FLUX.1-Redux-dev",
        "flux1-redux-dev.safetensors",
        "flux-redux",
        _FLUX,
        SIGLIP,
        _FLUX_LICENSE,
        note="variations of a picture; its tokens stand behind the text's",
    ),
    "sd35": PublishedAdapter(
        "InstantX/SD3.5-Large-IP-Adapter",
        "ip-adapter.bin",
        "sd35",
        "SD3.5 Large",
        SIGLIP,
        "stabilityai-ai-community",
        note="0.5 to 0.6 is the usual scale",
    ),
}
"""Short name → published adapter; the case of names does not matter."""


class Encoder(NamedTuple):
    """The model that makes an input of a projection."""

    name: str
    """Name of the model, as a phrase."""
    source: str | None = None
    """Hub id and folder of the model that published adapters use, if there is one."""


ENCODERS: dict[tuple[Input, int], Encoder] = {
    ("image_embedding", 512): Encoder("CLIP ViT-B projected embedding"),
    ("image_embedding", 768): Encoder("CLIP ViT-L/14 projected embedding", VIT_L),
    ("image_embedding", 1024): Encoder("CLIP ViT-H/14 projected embedding", VIT_H),
    ("image_embedding", 1152): Encoder("SigLIP so400m pooled embedding", SIGLIP),
    ("image_embedding", 1280): Encoder("CLIP ViT-bigG/14 projected embedding", VIT_BIGG),
    ("image_features", 768): Encoder("CLIP ViT-B penultimate features"),
    ("image_features", 1024): Encoder("CLIP ViT-L/14-336 penultimate features", VIT_L_336),
    ("image_features", 1152): Encoder("SigLIP so400m penultimate features", SIGLIP),
    ("last_image_features", 1152): Encoder("SigLIP so400m last features", SIGLIP),
    ("image_features", 1280): Encoder("CLIP ViT-H/14 penultimate features", VIT_H),
    ("image_features", 1664): Encoder("CLIP ViT-bigG/14 penultimate features", VIT_BIGG),
    ("face_embedding", 128): Encoder("identity embedding of the embedded model's recognizer"),
    ("face_embedding", 512): Encoder("ArcFace identity embedding"),
}
"""(input of a projection, width) → the model that makes it."""


def describe_encoder(input: Input, width: int) -> Encoder:
    """Return the model that makes an input of this width, known or unknown."""
    kind = "face embedder" if input == "face_embedding" else "image encoder"
    return ENCODERS.get((input, width), Encoder(f"an unknown {kind}"))
