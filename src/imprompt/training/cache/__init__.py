"""What frozen models make of the data, computed once and read by every run with the same models and sizes.

samples → parts → shards (encoding, making; by an engine) → receipts → manifest → rows (reading)
"""

from imprompt.training.cache.building import build_cache
from imprompt.training.cache.live import LiveSamples
from imprompt.training.cache.reading import CachedSamples

__all__ = ["CachedSamples", "LiveSamples", "build_cache"]
