"""What frozen models make of the data, computed once and read by every run with the same models and sizes.

samples → parts → shards (encoding, making; by an engine) → receipts → manifest → rows (reading)
"""

from imprompt.training.cache.build import build_cache
from imprompt.training.cache.cached_samples import CachedSamples
from imprompt.training.cache.live_samples import LiveSamples

__all__ = ["CachedSamples", "LiveSamples", "build_cache"]
