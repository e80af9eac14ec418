"""Who makes the shards: this process, several, or Ray. What comes out is the same, byte for byte."""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

from imprompt.errors import MissingExtra
from imprompt.training.cache.folder import Receipt
from imprompt.training.cache.making import Job, ShardMaker
from imprompt.training.frozen import FrozenBase
from imprompt.training.samples import Part

Engine = Callable[[Sequence[Part], Job], Iterator[tuple[int, Receipt]]]
"""Makes all parts; yields the number of each as it is done, in any order, and its receipt."""


def engine_for(job: Job, frozen: FrozenBase) -> Engine:
    """The engine that a configuration asks for; `frozen` is what this process has loaded.

    Raises:
        MissingExtra: Ray is not installed
    """
    cache = job.config.cache
    if cache.engine == "ray":
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra("ray", "ray")
        from imprompt.training.cache.ray_tasks import make_with_ray

        return make_with_ray
    if cache.workers > 1:
        from imprompt.training.cache.processes import make_in_processes

        return make_in_processes
    return lambda parts, job: _make_here(parts, ShardMaker(job, frozen))


def _make_here(parts: Sequence[Part], maker: ShardMaker) -> Iterator[tuple[int, Receipt]]:
    for number, part in enumerate(parts):
        yield number, maker.make(part)
