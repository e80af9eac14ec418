"""How a frozen denoiser runs in training: which activations are computed again, which blocks are compiled."""

import os
import shutil
from typing import Any

from torch import nn

from imprompt.errors import ConfigError


def checkpoint_blocks(denoiser: Any, every: int) -> None:
    """Compute the activations of every n-th block of a denoiser again in the backward pass.

    The blocks of a U-Net are counted from 0 in the order in which they run: down, mid, up.

    Args:
        denoiser: a model of diffusers, which is put into training mode: it checkpoints in that only
        every: n; 1 for all blocks, which needs the least memory

    Raises:
        ConfigError: some blocks of a transformer, which checkpoints all or none
    """
    denoiser.enable_gradient_checkpointing()
    denoiser.train()  # There is no dropout in it.
    if every == 1:
        return
    if not hasattr(denoiser, "down_blocks"):
        raise ConfigError(
            f"training.checkpoint_every {every} is for a base with a U-Net; a transformer recomputes all"
        )
    for number, block in enumerate(list_blocks(denoiser)):
        for module in block.modules() if number % every else ():
            if hasattr(module, "gradient_checkpointing"):
                vars(module)["gradient_checkpointing"] = False


def list_blocks(unet: Any) -> list[nn.Module]:
    """Return the blocks of a U-Net in the order in which they run."""
    middle = [unet.mid_block] if isinstance(unet.mid_block, nn.Module) else []
    return [*unet.down_blocks, *middle, *unet.up_blocks]


def compile_blocks(denoiser: nn.Module, backend: str = "inductor") -> int:
    """Compile each transformer block of a U-Net, in place; blocks of one shape share a graph.

    Args:
        denoiser: the U-Net
        backend: that of `torch.compile`

    Returns:
        The number of blocks

    Raises:
        ConfigError: there is no C++ compiler, which is needed on a CPU and for Triton; the denoiser is no
            U-Net
    """
    if backend == "inductor" and not find_compiler():
        raise ConfigError(
            "training.compile needs a C++ compiler, g++ or clang++; install one or leave it out"
        )
    blocks = [one for one in denoiser.modules() if type(one).__name__ == "BasicTransformerBlock"]
    if not blocks:
        raise ConfigError("training.compile is for a base with a U-Net; leave it out")
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: that of the variable CXX, or a usual one."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
