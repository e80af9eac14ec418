"""One generation as a file: a job in TOML, or the settings that a picture carries inside.

    prompt = "on a blue background"
    steps = 30

    [[references]]
    images = "cat.png"              # paths are relative to the file
    scale = 0.8
    layers = "style"

    [[references]]
    images = "room.png"
    layers = "composition"
    mask = "left-half.png"

An unknown key is an error that names the nearest known one. `Job` says what a job may hold, `JobReference`
what one image prompt of it may.
"""

from imprompt.generation.job.files import (
    has_settings,
    load_job,
    parse_job,
    picture_settings,
    read_job,
    read_settings,
    save_job,
)
from imprompt.generation.job.model import DEFAULT_STEPS, EMBEDDINGS_SUFFIX, Job, JobControl, JobReference

__all__ = [
    "DEFAULT_STEPS",
    "EMBEDDINGS_SUFFIX",
    "Job",
    "JobControl",
    "JobReference",
    "has_settings",
    "load_job",
    "parse_job",
    "picture_settings",
    "read_job",
    "read_settings",
    "save_job",
]
