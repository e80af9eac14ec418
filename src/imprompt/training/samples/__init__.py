"""Raw data → samples: folders, tables, Hugging Face data sets and tar shards, all as parts of samples."""

from imprompt.training.samples.sample import Part, Sample, Unreadable

__all__ = ["Part", "Sample", "Unreadable"]
