"""Random LoRA files for tiny U-Nets."""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file


def write_lora(folder: Path, unet: Any, *, seed: int = 0, kohya: bool = False) -> Path:
    """Write a random LoRA for a U-Net, in the layout of diffusers or of kohya's scripts."""
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
    state = {f"unet.{name}": value.contiguous() for name, value in get_peft_model_state_dict(unet).items()}
    unet.delete_adapters("default")
    unet.unload_lora()
    file = folder / f"lora-{seed}.safetensors"
    save_file(convert_state_dict_to_kohya(state) if kohya else state, file)
    return file
