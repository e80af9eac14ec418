"""The processes that `torchrun` or `accelerate launch` started, and the rank of this one."""

from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)
"""How long processes wait for the first one, which builds the cache; the default is minutes."""


def join_processes() -> Any:
    """Join the other processes on the first call; accelerate needs to know whether there is a GPU.

    Returns:
        a `PartialState`, whose device its types take for perhaps missing
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def broadcast_from_main(value: Value) -> Value:
    """Return the main process' value in all processes."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
