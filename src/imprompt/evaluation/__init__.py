"""Measure how well image prompts are followed: judges, metrics, methods, and the suites."""
