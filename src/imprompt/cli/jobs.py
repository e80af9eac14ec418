"""What `imprompt generate` does: jobs are read, models loaded, and pictures generated and written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imprompt.cli.options import build_job
from imprompt.cli.outputs import choose_outputs, keep_existing
from imprompt.cli.references import expand_folder, warn_about_portraits
from imprompt.cli.terminal import (
    error_console,
    exit_on_interrupt,
    pause_garbage_collection,
    print_warnings_as_notes,
    print_written,
    progress_bar,
    quiet_libraries,
)

if TYPE_CHECKING:
    from imprompt.generation.job import Job
    from imprompt.generation.run import JobInputs, JobModels


def generate_files(options: Mapping[str, Any], *, view: bool, save_job: Path | None, overwrite: bool) -> None:
    """Generate the pictures of a command and write them.

    Args:
        options: the given options of `imprompt generate`
        view: also write what the image encoder sees
        save_job: also write the job into this file
        overwrite: replace existing files, instead of taking free names

    Raises:
        ImpromptError: an option, a file or a model cannot be used
    """
    with exit_on_interrupt():
        requests = [build_job(one) for one in expand_folder(options)]
        sources = [file for request in requests for file in request.files]
        sources += [str(options[name]) for name in ("like", "job") if name in options]
        outputs = choose_outputs(requests, sources, view=view, save_job=save_job, overwrite=overwrite)
        with pause_garbage_collection():
            from imprompt.generation import run
            from imprompt.generation.pairing import pair_models

        requests = [pair_models(request) for request in requests]
        inputs = run.read_inputs(requests[0])
    warn_about_portraits(requests[0], inputs)
    models = _load_models(requests[0])
    _generate_pictures(requests, inputs, models, outputs.pictures, overwrite=overwrite)
    if outputs.view is not None:
        _write_encoder_views(inputs, models, keep_existing(outputs.view, overwrite=overwrite))
    if outputs.job is not None:
        _write_job(requests[0], keep_existing(outputs.job, overwrite=overwrite))


def _load_models(job: "Job") -> "JobModels":
    from imprompt.generation.run import load_models

    quiet_libraries()
    with (
        exit_on_interrupt(),
        error_console().status("loading the models"),
        pause_garbage_collection(),
    ):
        return load_models(job)


def _generate_pictures(
    jobs: Sequence["Job"],
    first_inputs: "JobInputs",
    models: "JobModels",
    paths: Sequence[Path],
    *,
    overwrite: bool,
) -> None:
    """Generate the pictures of all jobs, which differ in their references only, and write each at once."""
    from imprompt.generation.job import collect_settings, remember_files
    from imprompt.generation.run import run_job
    from imprompt.runtime.picture_files import save_picture

    free_paths = iter(paths)
    shared = set.intersection(*({*job.files} for job in jobs))
    total = len(jobs) * first_inputs.count_steps(jobs[0])
    with print_warnings_as_notes(), progress_bar(total) as advance:
        for number, job in enumerate(jobs):
            remember_files(job.files)
            # The files of a folder are read one by one, because a thousand decoded pictures fill the memory.
            inputs = first_inputs if number == 0 else _read_inputs(job)
            source = next((file for file in job.files if file not in shared), None)
            for picture, single_job in run_job(job, inputs, models, on_step=advance):
                path = keep_existing(next(free_paths), overwrite=overwrite)
                save_picture(picture, path, collect_settings(single_job, path))
                print_written(path, source)


def _read_inputs(job: "Job") -> "JobInputs":
    from imprompt.generation.run import read_inputs

    inputs = read_inputs(job)
    warn_about_portraits(job, inputs)
    return inputs


def _write_encoder_views(inputs: "JobInputs", models: "JobModels", path: Path) -> None:
    from imprompt.generation.run import draw_encoder_views
    from imprompt.runtime.picture_files import save_picture

    save_picture(draw_encoder_views(inputs, models), path)
    print_written(path)


def _write_job(job: "Job", path: Path) -> None:
    from imprompt.generation.job import save_job

    save_job(job, path)
    print_written(path)
