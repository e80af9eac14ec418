"""diffusers pipelines in the layout of the original code, as single files have them.

Written from the published code (CompVis/stable-diffusion, mlfoundations/open_clip), in the direction that
diffusers does not offer. Works on the meta device too.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Rules = Sequence[tuple[str, str]]

RESNET: Rules = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
AROUND_THE_BLOCKS: Rules = (
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
)
AUTOENCODER: Rules = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.", r"encoder.down.\1.block.\2."),
    (r"^encoder\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.", r"encoder.down.\1.downsample.conv."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
)
OPENCLIP: Rules = (
    (r"^embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.resblocks.\1.attn.out_proj."),
)


def write_single_file(pipe: Any, path: Path, **extra: Tensor) -> Path:
    """Write a pipeline as one file: safetensors, or for the suffix .ckpt a pickle as trainers write it."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in convert_pipeline(pipe).items()} | extra
    if path.suffix == ".ckpt":
        torch.save({"epoch": 3, "global_step": 875000, "state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    return path


def convert_pipeline(pipe: Any) -> dict[str, Tensor]:
    """Return all weights of a pipeline under their original names."""
    models = {"model.diffusion_model.": convert_unet(pipe.unet), "first_stage_model.": convert_vae(pipe.vae)}
    if hasattr(pipe, "text_encoder_2"):
        models["conditioner.embedders.0.transformer.text_model."] = convert_clip(pipe.text_encoder)
        models["conditioner.embedders.1.model."] = convert_openclip(pipe.text_encoder_2)
    elif pipe.unet.config.cross_attention_dim in (768, 20):  # SD 1.5; `tiny` has 20 for it
        models["cond_stage_model.transformer.text_model."] = convert_clip(pipe.text_encoder)
    else:
        models["cond_stage_model.model."] = convert_openclip(pipe.text_encoder)
    return {prefix + name: tensor for prefix, group in models.items() for name, tensor in group.items()}


def convert_unet(unet: Any) -> dict[str, Tensor]:
    per_block = unet.config.layers_per_block + 1
    return {_unet_name(name, per_block, unet): tensor for name, tensor in unet.state_dict().items()}


def _unet_name(name: str, per_block: int, unet: Any) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        side, block, kind, layer, rest = match.groups()
        number = int(block) * per_block
        place = "input_blocks" if side == "down" else "output_blocks"
        if kind == "downsamplers":
            return f"{place}.{number + per_block}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":  # behind a ResNet block, and behind attention if there is any
            has_attention = hasattr(unet.up_blocks[int(block)], "attentions")
            return f"{place}.{number + per_block - 1}.{2 if has_attention else 1}.{rest}"
        number += int(layer) + (side == "down")
        if kind == "attentions":
            return f"{place}.{number}.1.{rest}"
        return f"{place}.{number}.0{_apply(f'.{rest}', RESNET)}"
    if match := re.match(r"mid_block\.resnets\.([01])\.(.+)", name):
        return f"middle_block.{2 * int(match[1])}{_apply(f'.{match[2]}', RESNET)}"
    return _apply(name, AROUND_THE_BLOCKS)


def convert_vae(vae: Any) -> dict[str, Tensor]:
    last, result = len(vae.config.up_block_types) - 1, {}
    for own, tensor in vae.state_dict().items():
        name = re.sub(
            r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.(conv\.)?",
            lambda match: (
                f"decoder.up.{last - int(match[1])}."
                + (f"block.{match[3]}." if match[2] == "resnets" else "upsample.conv.")
            ),
            own,
        )
        name = _apply(name, AUTOENCODER)
        is_matrix = re.search(r"\.attn_1\.(q|k|v|proj_out)\.weight$", name)  # a convolution of one pixel
        result[name] = tensor[:, :, None, None] if is_matrix else tensor
    return result


def convert_clip(encoder: nn.Module) -> dict[str, Tensor]:
    return {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}


def convert_openclip(encoder: Any) -> dict[str, Tensor]:
    """Join q, k and v, as OpenCLIP has them; for SD 2.x add its unused last layer and text projection."""
    own = convert_clip(encoder)
    result = {_apply(name, OPENCLIP): tensor for name, tensor in own.items() if not _is_separate(name)}
    for number in range(encoder.config.num_hidden_layers):
        source, place = f"encoder.layers.{number}.self_attn", f"transformer.resblocks.{number}.attn"
        for kind in ("weight", "bias"):
            parts = [own[f"{source}.{letter}_proj.{kind}"] for letter in "qkv"]
            result[f"{place}.in_proj_{kind}"] = torch.cat(parts)
    if "text_projection.weight" in own:
        result["text_projection"] = own["text_projection.weight"].T
        return result
    layers, device = encoder.config.num_hidden_layers, own["final_layer_norm.bias"].device
    unused = {
        re.sub(r"\.0\.", f".{layers}.", name, count=1): torch.zeros_like(tensor)
        for name, tensor in result.items()
        if name.startswith("transformer.resblocks.0.")
    }
    width = encoder.config.hidden_size
    return result | unused | {"text_projection": torch.zeros(width, width, device=device)}


def _is_separate(name: str) -> bool:
    return bool(re.search(r"\.self_attn\.[qkv]_proj\.", name)) or name == "text_projection.weight"


def _apply(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
