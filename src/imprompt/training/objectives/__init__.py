"""Losses: the interface `Objective`, and that of every adapter, image prompting."""
