"""One generation as a file: a job in TOML, or the settings inside a picture.

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

An unknown key is an error that names the nearest known one. `Job` has the settings of a job, `JobReference`
those of an image prompt.
"""

from imprompt.generation.job.base_options import JobEmbedding, JobLora
from imprompt.generation.job.files import collect_settings, list_versions, save_job
from imprompt.generation.job.limits import DEFAULT_GUIDANCE, DEFAULT_STEPS
from imprompt.generation.job.located_files import hash_file, locate_file, remember_files
from imprompt.generation.job.model import Job, parse_job
from imprompt.generation.job.pictures import has_settings, read_hashes, read_settings
from imprompt.generation.job.reference import EMBEDDINGS_SUFFIX, STANDARD_INPUT, JobControl, JobReference

__all__ = [
    "DEFAULT_GUIDANCE",
    "DEFAULT_STEPS",
    "EMBEDDINGS_SUFFIX",
    "STANDARD_INPUT",
    "Job",
    "JobControl",
    "JobEmbedding",
    "JobLora",
    "JobReference",
    "collect_settings",
    "has_settings",
    "hash_file",
    "list_versions",
    "locate_file",
    "parse_job",
    "read_hashes",
    "read_settings",
    "remember_files",
    "save_job",
]
