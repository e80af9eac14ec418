"""Shared by all rooms: files, output, settings, progress, environment, hub, foreign models, workers."""
