"""The adapter: encodes references, computes image keys and values, and attaches to a pipeline."""
