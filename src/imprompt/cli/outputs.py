"""The files that `imprompt generate` writes: existing ones are kept, unless --overwrite is given."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imprompt.errors import OutputError
from imprompt.runtime.output import check_output, find_free_paths, number_paths

if TYPE_CHECKING:
    from imprompt.generation.job import Job


class Outputs(NamedTuple):
    """The files that a run writes."""

    pictures: Sequence[Path]
    view: Path | None
    """What the image encoder sees."""
    job: Path | None
    """The settings in TOML."""


def choose_outputs(
    jobs: Sequence["Job"], sources: Sequence[str], *, view: bool, save_job: Path | None, overwrite: bool
) -> Outputs:
    """Choose the files to write, and refuse those that cannot be written before any work is done.

    Args:
        jobs: jobs that differ in their references only; `output` is the name from which others are derived
        sources: files that the run reads, which it must not replace
        view: whether to write what the encoder sees
        save_job: the file for the settings, if they are to be written
        overwrite: write to the plain names, whatever is there. By default the next free names are taken

    Raises:
        OutputError: see `check_output`; or a file would replace one of the sources
    """
    from imprompt.runtime.picture_files import FORMATS

    output, number = Path(jobs[0].output), sum(len(job.outputs) for job in jobs)
    check_output(output, *FORMATS)
    seen = output.with_stem(f"{output.stem}-seen") if view else None
    if save_job is not None:
        check_output(save_job, ".toml")
    if not overwrite:
        return Outputs(find_free_paths(output, number), _find_free(seen), _find_free(save_job))
    outputs = Outputs(number_paths(output, number), seen, save_job)
    read = {_identify(Path(file)) for file in sources} - {None}
    for path in [*outputs.pictures, *filter(None, (seen, save_job))]:
        check_output(path)
        if _identify(path) in read:
            raise OutputError(f"{path} is one of the files to be read; choose another name with --output")
    return outputs


def keep_existing(path: Path, *, overwrite: bool) -> Path:
    """Return the path, or a free name if a file has appeared there since the names were chosen."""
    return path if overwrite or not os.path.lexists(path) else find_free_paths(path)[0]


def _find_free(path: Path | None) -> Path | None:
    return path and find_free_paths(path)[0]


def _identify(path: Path) -> tuple[int, int] | None:
    """Return device and inode of a file, by whatever name it is given; None if there is none."""
    try:
        facts = path.stat()
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    return facts.st_dev, facts.st_ino
