"""What a file of tensors is if it is no base model in the original layout, and where such a file belongs.

The names are those that the programs write which make such files: kohya-ss/sd-scripts (`lora_unet_`,
`lora_te`), LyCORIS (`hada_`, `lokr_`, `oft_`), peft (`lora_A`), diffusers, lllyasviel/ControlNet
(`control_model.`), TencentARC/T2I-Adapter (`body.`), A1111's web UI (`string_to_param`, `emb_params`),
bitsandbytes (`absmax`), GPTQ (`qweight`), ComfyUI (`scaled_fp8`, `scale_weight`, `comfy_quant`). Those of
transformers for pictures and videos are from the original code of each, as diffusers 0.42 lists them in
`diffusers/loaders/single_file_utils.py`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

Tensors = Mapping[str, Tensor]

BASE_NEEDED = "use a base model of Stable Diffusion 1.5, 2.x or SDXL"
"""What to do with a model to which image prompts cannot be added."""

_BASE_BESIDE = "and the base with --base"
_WHOLE_BASE = "use a file with U-Net, autoencoder and text encoder, or a folder in diffusers' format"


class FileKind(NamedTuple):
    """What a file is.

    Attributes:
        name: a noun phrase, such as "a LoRA"
        use: what to do with it, such as "give it with --lora, and the base with --base"
    """

    name: str
    use: str


class Rule(NamedTuple):
    """A kind, and the pattern that one of the names in its files contains; ^ and $ mark a name's ends."""

    kind: FileKind
    pattern: str


def _transformer(name: str, pattern: str) -> Rule:
    """Return the rule of a model whose denoiser is no U-Net; a prefix may precede `pattern` in its names."""
    kind = FileKind(name, f"image prompts need a base with a U-Net: {BASE_NEEDED}")
    return Rule(kind, rf"^(model\.diffusion_model\.|net\.|transformer\.|model\.)?({pattern})")


_IMAGE_EMBEDDINGS = FileKind(
    "a file of image embeddings", "give it as the reference in place of a picture, and the base with --base"
)
_INVERSION = FileKind("a textual inversion", f"give it with --embedding, {_BASE_BESIDE}")
_LORA = FileKind("a LoRA", f"give it with --lora, {_BASE_BESIDE}")
_CONTROLNET = FileKind("a ControlNet", f"give its folder with --control-model, {_BASE_BESIDE}")
_CONTROL_LORA = FileKind("a Control-LoRA", "use the whole ControlNet, as a folder with --control-model")
_T2I_ADAPTER = FileKind("a T2I-Adapter", "use it in Python, in one of diffusers' adapter pipelines")
_MOTION = FileKind(
    "a motion module of AnimateDiff", "use it in Python, in an AnimateDiff pipeline of diffusers"
)
_EMA_ONLY = FileKind("a file of averaged (EMA) weights only", "use the file that its training script exports")
_UPSCALER = FileKind("an upscaler of pictures", BASE_NEEDED)

RULES = (
    Rule(_IMAGE_EMBEDDINGS, r"^inputs\.(image_embedding|image_features|face_embedding)$"),
    Rule(_CONTROL_LORA, r"^lora_controlnet$"),
    Rule(
        _LORA,
        r"(^|\.)lora_(unet|te|te1|te2|transformer|prior)_|\.(lora_[AB]|lora_(up|down)|lora\.(up|down))\.|"
        r"_lora\.(up|down)\.|\.lora_linear_layer\.|"
        r"\.(hada_w[12]_a|lokr_w[12](_a)?|oft_blocks|oft_diag)$",
    ),
    Rule(
        _CONTROLNET,
        r"^control_model\.|(^|\.)(controlnet_(cond_embedding|down_blocks|blocks|x_embedder)|input_hint_block|"
        r"zero_convs)\.",
    ),
    Rule(_T2I_ADAPTER, r"^(adapter\.)?body\.\d+\.(block1|in_conv|resnets)\."),
    Rule(_MOTION, r"\.motion_modules\.\d+\.|\.temporal_transformer\."),
    Rule(_EMA_ONLY, r"^model_ema\.diffusion_model"),
    Rule(_INVERSION, r"^(emb_params|clip_l|clip_g|string_to_param\..+|<[^<>]+>)$"),
    Rule(_UPSCALER, r"^(model\.)?(conv_first|body\.0\.rdb1|1\.sub\.0)\.|\.RDB1\."),
    _transformer("a FLUX.2 model", r"(double|single)_stream_modulation(_img|_txt)?\.lin\."),
    _transformer("a Chroma model", r"distilled_guidance_layer\."),
    _transformer("a HunyuanVideo model", r"txt_in\.individual_token_refiner\."),
    _transformer("a FLUX model", r"double_blocks\.0\.img_attn\.|single_transformer_blocks\.0\."),
    _transformer("a Stable Diffusion 3 model", r"joint_blocks\.0\.|transformer_blocks\.0\.norm1_context\."),
    _transformer("an AuraFlow model", r"double_layers\.0\.attn\."),
    _transformer("an HiDream model", r"double_stream_blocks\.0\.block\."),
    _transformer("a Lumina or Z-Image model", r"cap_embedder\.0\.|layers\.0\.adaLN_modulation\."),
    _transformer("a Wan model", r"head\.modulation$|patch_embedding\.weight$"),
    _transformer("an LTX-Video model", r"patchify_proj\."),
    _transformer("a Qwen-Image model", r"transformer_blocks\.0\.img_mod\."),
    _transformer("a Sana model", r"blocks\.0\.cross_attn\.q_linear\.|caption_norm\."),
    _transformer("a PixArt model", r"adaln_single\.|t_block\.1\.|y_embedder\.y_proj\."),
    _transformer("a Hunyuan-DiT model", r"blocks\.0\.default_modulation\."),
    _transformer("a Stable Cascade model", r"clip_txt_(pooled_)?mapper\.|down_blocks\.0\.0\.channelwise\."),
)
"""Kinds that are no part of a base model that imprompt knows. The first rule that matches a name decides."""

_QUANTIZED = FileKind("a quantized model", "use a file of float16, bfloat16 or float32 weights")
_QUANTIZED_NAME = re.compile(
    r"\.(absmax|quant_map|nested_absmax|SCB|qweight|qzeros|scale_weight|weight_scale|comfy_quant)$|"
    r"\.quant_state\.|^scaled_fp8$|bitsandbytes__"
)

_UNET = FileKind("the U-Net of a base model", _WHOLE_BASE)
_IMAGE_ENCODER = FileKind("an image encoder", f"give its folder with --image-encoder, {_BASE_BESIDE}")
_AUTOENCODER = FileKind("an autoencoder", f"give it with --vae, {_BASE_BESIDE}")
_TEXT_ENCODER = FileKind("a text encoder", _WHOLE_BASE)

PARTS = (
    Rule(_UNET, r"^(unet\.)?down_blocks\.0\.resnets\.|(^|\.)input_blocks\.0\."),
    Rule(_IMAGE_ENCODER, r"(^|\.)vision_model\.|^(model\.)?visual\.|^embeddings\.(patch|class)_embedding"),
    Rule(
        _AUTOENCODER,
        r"^(first_stage_model\.|vae\.)?(de|en)coder\.(conv_in|down\.0|mid\.block_1|mid_block)\.|"
        r"^decoder\.layers\.0\.weight$",
    ),
    Rule(
        _TEXT_ENCODER,
        r"(^|\.)text_model\.|(^|\.)transformer\.resblocks\.\d|^encoder\.block\.0\.layer\.0\.|"
        r"^(embeddings|encoder\.layers\.\d+|cond_stage_model|conditioner|(model\.)?embed_tokens)\.",
    ),
)
"""Parts of a base model alone."""

_EMBEDDING_WIDTHS = (768, 1024, 1280)


def find_kind(tensors: Tensors) -> FileKind | None:
    """Return what the file is that holds these tensors; None if it is none of the kinds in this module."""
    if kind := _find_rule(RULES, tensors):
        return kind
    if is_quantized(tensors):
        return _QUANTIZED
    return _find_rule(PARTS, tensors) or (_INVERSION if _are_token_embeddings(tensors) else None)


def is_quantized(tensors: Tensors) -> bool:
    """Whether the weights are packed, or need a scale to be read, as in NF4, GPTQ, int8 or scaled float8."""
    return any(_QUANTIZED_NAME.search(name) for name in tensors) or any(
        name.endswith(".weight") and tensor.ndim > 1 and not tensor.is_floating_point()
        for name, tensor in tensors.items()
    )


def _find_rule(rules: Sequence[Rule], tensors: Tensors) -> FileKind | None:
    for rule in rules:
        pattern = re.compile(rule.pattern)
        if any(pattern.search(name) for name in tensors):
            return rule.kind
    return None


def _are_token_embeddings(tensors: Tensors) -> bool:
    """Whether these may be the vectors of one token; diffusers stores them under the token itself."""
    return len(tensors) == 1 and all(
        tensor.ndim in (1, 2) and tensor.shape[-1] in _EMBEDDING_WIDTHS for tensor in tensors.values()
    )
