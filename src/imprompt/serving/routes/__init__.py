"""The routes of each API; all of them ask the same service."""
