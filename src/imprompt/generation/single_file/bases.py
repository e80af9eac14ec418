"""The base model in a file of the original layout, read from the shapes of its U-Net.

    model.diffusion_model.X                    U-Net
    first_stage_model.X                        autoencoder
    cond_stage_model.transformer.text_model.X  CLIP ViT-L/14 of SD 1.5 (transformers)
    cond_stage_model.model.X                   OpenCLIP ViT-H/14 of SD 2.x
    conditioner.embedders.0.transformer.text_model.X, conditioner.embedders.1.model.X
                                               CLIP ViT-L/14 and OpenCLIP ViT-bigG/14 of SDXL

Sources: CompVis/stable-diffusion, Stability-AI/stablediffusion, Stability-AI/generative-models. What a file
does not state, the noise prediction, is read as ComfyUI reads it (comfyanonymous/ComfyUI,
`comfy/supported_models.py`, `SD20.model_type` and `SDXL.model_type`):

- SD 2.x with four input channels predicts v if the standard deviation of V_PREDICTION_BIAS is above
  V_PREDICTION_DEVIATION.
- SDXL predicts v if there is a tensor `v_pred`. Its schedule then ends at zero signal if there is one named
  `ztsnr`. NoobAI-XL's files have both.
- `edm_mean` and `edm_std` mark Playground 2.5, and `edm_vpred.sigma_max` marks CosXL.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from imprompt.generation.single_file.kinds import BASE_NEEDED, FileKind

Tensors = Mapping[str, Tensor]
Family = Literal["SD1.5", "SD2.x", "SDXL"]
Prediction = Literal["epsilon", "v_prediction"]

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
_V1_TEXT, _V2_TEXT = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
_XL_TEXT, _XL_TEXT_2 = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
TEXT_ENCODERS: Mapping[Family, tuple[str, ...]] = {
    "SD1.5": (_V1_TEXT,),
    "SD2.x": (_V2_TEXT,),
    "SDXL": (_XL_TEXT, _XL_TEXT_2),
}
"""The beginnings of the names of each family's text encoders."""

V_PREDICTION_BIAS = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
V_PREDICTION_DEVIATION = 0.09

TITLES: Mapping[Family, str] = {
    "SD1.5": "Stable Diffusion 1.5",
    "SD2.x": "Stable Diffusion 2.x",
    "SDXL": "Stable Diffusion XL",
}

_FAMILIES: Mapping[int, Family] = {768: "SD1.5", 1024: "SD2.x", 2048: "SDXL"}
"""Width of the text embeddings → family."""

_TEXT_KEY = re.compile(r"input_blocks\.\d+\.1\.transformer_blocks\.0\.attn2\.to_k\.weight")
_RENAMED = (
    # Files from transformers' bare text model; A1111's web UI renames them alike (modules/sd_models.py).
    (
        re.compile(
            r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\."
            r"(?=(embeddings|encoder|final_layer_norm)\.)"
        ),
        r"\1.transformer.text_model.",
    ),
    # SD 2.x as Stability-AI/generative-models saves it.
    (re.compile(r"conditioner\.embedders\.0\.model\."), _V2_TEXT),
)


@dataclass(frozen=True, kw_only=True)
class BaseVariant:
    """A base model that can be loaded from a single file."""

    family: Family
    inpainting: bool = False
    """Whether the U-Net has nine input channels: latents, those of the masked picture, and the mask."""
    prediction: Prediction = "epsilon"
    zero_snr: bool = False
    """Whether the schedule ends at zero signal (Lin et al. 2023, https://arxiv.org/abs/2305.08891)."""

    @property
    def name(self) -> str:
        """The base in words, such as "Stable Diffusion 2.x (v-prediction)"."""
        marks = ["inpainting"] * self.inpainting + ["v-prediction"] * (self.prediction == "v_prediction")
        return TITLES[self.family] + (f" ({', '.join(marks)})" if marks else "")


def use_original_names(tensors: Tensors) -> dict[str, Tensor]:
    """Rename the tensors of text encoders that other programs name differently."""
    return {_original_name(name): tensor for name, tensor in tensors.items()}


def _original_name(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name) if pattern.match(name) else name
    return name


def find_base(tensors: Tensors) -> BaseVariant | FileKind | None:
    """Return the base in a file; for a related model or an incomplete file its kind; None for another file.

    Args:
        tensors: under their original names, on any device; only V_PREDICTION_BIAS needs its values
    """
    unet = {name.removeprefix(UNET): tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    first, text_key = unet.get("input_blocks.0.0.weight"), next(filter(_TEXT_KEY.fullmatch, unet), None)
    if first is None or first.ndim != 4 or text_key is None:
        return None
    width, channels = unet[text_key].shape[-1], first.shape[1]
    if related := _find_related_model(tensors, unet, width, channels):
        return FileKind(related, BASE_NEEDED)
    family = _FAMILIES[width]
    if missing := _find_missing_parts(tensors, family):
        title = f"{TITLES[family]} without {missing}"
        return FileKind(title, "use a file that holds them, or a folder in diffusers' format")
    predicts_v = channels == 4 and _predicts_v(tensors, family)
    return BaseVariant(
        family=family,
        inpainting=channels == 9,
        prediction="v_prediction" if predicts_v else "epsilon",
        zero_snr=predicts_v and "ztsnr" in tensors,
    )


def _find_related_model(tensors: Tensors, unet: Tensors, width: int, channels: int) -> str | None:
    """Return the name of a model of the same layout that is no base for image prompts."""
    if any(".time_stack." in name for name in unet):
        return "Stable Video Diffusion"
    if width == 1280:
        return "the SDXL refiner"
    if width not in _FAMILIES:
        return f"a U-Net for text embeddings {width} wide"
    if "edm_mean" in tensors and "edm_std" in tensors:
        return "Playground 2.5"
    if "edm_vpred.sigma_max" in tensors:
        return "CosXL"
    if "time_embed.cond_proj.weight" in unet:
        return "a latent consistency model whose U-Net reads the guidance scale"
    return _find_unusual_unet(tensors, unet, _FAMILIES[width], channels)


def _find_unusual_unet(tensors: Tensors, unet: Tensors, family: Family, channels: int) -> str | None:
    if family == "SDXL" and "input_blocks.8.1.transformer_blocks.9.norm1.bias" not in unet:
        return "a distilled SDXL with fewer layers, such as SSD-1B"
    if channels == 8:
        return "Zero123" if "cc_projection.weight" in tensors else "InstructPix2Pix"
    if channels in (5, 7) and family == "SD2.x":
        return "Stable Diffusion 2 depth-to-image" if channels == 5 else "the Stable Diffusion ×4 upscaler"
    if family == "SD2.x" and "label_emb.0.0.weight" in unet:
        return "Stable unCLIP 2.1"
    return None if channels in (4, 9) else f"a {TITLES[family]} model with {channels} input channels"


def _find_missing_parts(tensors: Tensors, family: Family) -> str:
    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in tensors)

    missing = [] if has(AUTOENCODER) else ["an autoencoder"]
    if not all(has(prefix) for prefix in TEXT_ENCODERS[family]):
        missing.append("a text encoder" if len(TEXT_ENCODERS[family]) == 1 else "both text encoders")
    return " and ".join(missing)


def _predicts_v(tensors: Tensors, family: Family) -> bool:
    if family == "SDXL":
        return "v_pred" in tensors
    bias = tensors.get(V_PREDICTION_BIAS)
    if family == "SD1.5" or bias is None:
        return False
    return bias.float().std(correction=0).item() > V_PREDICTION_DEVIATION
