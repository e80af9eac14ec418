"""The losses of the embedded model's parts."""
