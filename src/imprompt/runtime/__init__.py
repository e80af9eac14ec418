"""Shared by every part: files, output, settings, progress, environment, hub, precision, workers."""
