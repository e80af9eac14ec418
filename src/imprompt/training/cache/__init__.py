"""The outputs of the frozen models, computed once and shared by all runs with the same models and sizes.

samples → parts → shards (encode, shard_maker) → receipts → manifest → rows (cached_samples)
"""

from imprompt.training.cache.build import build_cache
from imprompt.training.cache.cached_samples import CachedSamples
from imprompt.training.cache.live_samples import LiveSamples

__all__ = ["CachedSamples", "LiveSamples", "build_cache"]
