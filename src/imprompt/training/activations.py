"""How a frozen U-Net runs in training: which activations are computed again, which blocks are compiled."""

import os
import shutil
from typing import Any

from torch import nn

from imprompt.errors import ConfigError


def checkpoint_blocks(unet: Any, every: int) -> None:
    """Compute the activations of every n-th block of a U-Net again in the backward pass.

    The blocks are counted from 0 in the order in which they run: down, mid, up.

    Args:
        unet: a U-Net of diffusers, which is put into training mode: it checkpoints in that only
        every: n; 1 for all blocks, which needs the least memory
    """
    unet.enable_gradient_checkpointing()
    unet.train()  # There is no dropout in it.
    for number, block in enumerate(list_blocks(unet)):
        for module in block.modules() if number % every else ():
            if hasattr(module, "gradient_checkpointing"):
                vars(module)["gradient_checkpointing"] = False


def list_blocks(unet: Any) -> list[nn.Module]:
    """Return the blocks of a U-Net in the order in which they run."""
    middle = [unet.mid_block] if isinstance(unet.mid_block, nn.Module) else []
    return [*unet.down_blocks, *middle, *unet.up_blocks]


def compile_blocks(unet: nn.Module, backend: str = "inductor") -> int:
    """Compile each transformer block of a U-Net, in place; blocks of one shape share a graph.

    Args:
        unet: the U-Net
        backend: that of `torch.compile`

    Returns:
        The number of blocks

    Raises:
        ConfigError: there is no C++ compiler, which is needed on a CPU and for Triton
    """
    if backend == "inductor" and not find_compiler():
        raise ConfigError(
            "training.compile needs a C++ compiler, g++ or clang++; install one or leave it out"
        )
    blocks = [one for one in unet.modules() if type(one).__name__ == "BasicTransformerBlock"]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: that of the variable CXX, or a usual one."""
    names = (os.environ.get("CXX"), "g++", "clang++", "c++")
    return next((path for name in names if name and (path := shutil.which(name))), None)
