"""Losses: `Objective`, what the loop asks of any of them, and that of every adapter, image prompting."""
