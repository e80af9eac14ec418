"""Which of a run's processes this one is, as `torchrun` or `accelerate launch` started them."""

from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Value = TypeVar("Value")

PATIENCE = timedelta(days=2)
"""How long the others wait for the first one, which makes the cache; the default is minutes."""


def this_process() -> Any:
    """Join the other processes, on the first call; accelerate joins them on a CPU only if it is told to.

    Returns:
        a `PartialState`, whose device its types take for perhaps missing
    """
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def main_process_value(value: Value) -> Value:
    """What the main process has for this value: what each process measures may differ."""
    values = [value]
    broadcast_object_list(values)
    return values[0]
