"""Threads of torch."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def compute_on_one_thread(device: torch.device | str) -> Iterator[None]:
    """Compute with one thread on a CPU, as workers do, so that the order of sums is always the same."""
    before = torch.get_num_threads()
    if torch.device(device).type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
