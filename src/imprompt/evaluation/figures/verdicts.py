"""What the eye says of the figures, and of which weights it said so. Written by hand, after looking."""

SEEN_ON = "2026-11-22"

SEEN_WEIGHTS = ""
"""`page.fingerprint` of the weights whose pictures were looked at."""

VERDICTS: dict[str, str] = {}
"""Figure → whether it keeps its promise."""
