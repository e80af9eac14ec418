"""A bar that counts pictures: `imprompt.progress`."""

from imprompt.progress import counted

__all__ = ["counted"]
