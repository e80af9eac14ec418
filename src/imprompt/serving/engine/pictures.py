"""One picture that somebody waits for, and how it is made by the library's own `run_job`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from imprompt.attention.sharing import make_stand_in, note_run
from imprompt.generation.prompts import find_dropped_words
from imprompt.generation.run import JobResult, read_inputs, run_job
from imprompt.serving.engine.models import LoadedModel, ModelStore
from imprompt.serving.engine.picture_thread import PictureThread
from imprompt.serving.engine.previews import Preview, draw_preview
from imprompt.serving.request_job import RequestJob
from imprompt.serving.settings import ServedModel

_log = logging.getLogger("imprompt.serving")


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureListener:
    """What is called while a picture is made, from the picture's own thread."""

    on_start: Callable[[], None]
    on_step: Callable[[int, int], None]
    """(steps done, steps in all)"""
    on_preview: Callable[[int, Image.Image], None]
    """(steps done, the picture as the U-Net predicts it)"""
    on_picture: Callable[[JobResult], None]
    on_error: Callable[[Exception], None]
    """The picture is canceled, a setting is wrong, or something failed."""
    on_warning: Callable[[str], None]
    """A sentence about something that the client may not expect."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PictureRequest:
    """A picture in the queue.

    Args:
        job: a job of exactly one picture
        served: its model
        client: whose it is, for the fair share
        listener: see above
        previews: how many previews are drawn, evenly spread over the steps
    """

    job: RequestJob
    served: ServedModel
    client: str
    listener: PictureListener
    previews: int = 0

    @property
    def rows(self) -> int:
        """The rows of the U-Net calls in all: the measure of its work."""
        branches = 2 if self.job.guidance_scale > 1 else 1
        return branches * self.job.steps


def make_picture(request: PictureRequest, store: ModelStore, thread: PictureThread) -> None:
    """Make a picture in its thread, and report to the listener whatever happens."""
    listener = request.listener
    try:
        inputs = read_inputs(request.job)
        with store.use(request.served, request.job) as model:
            thread.take_turn()
            listener.on_start()
            warn_of_prompts(request, model)
            steps = inputs.count_steps(request.job)
            progress = _Progress(request, thread, model, steps)
            models = model.for_picture(request.job, progress.make_unet())
            (result,) = run_job(request.job, inputs, models, on_step=progress.finish_step)
            thread.end_turn()
        listener.on_picture(result)
    except Exception as error:
        listener.on_error(error)


def warn_of_prompts(request: PictureRequest, model: LoadedModel) -> None:
    """Report words that the text encoder does not read."""
    if not request.job.prompt_weighting:
        for text in (*request.job.prompts, request.job.negative_prompt):
            if (warning := find_dropped_words(model.pipe, text)) is not None:
                request.listener.on_warning(warning)


class _Progress:
    """Follows one picture's steps: its U-Net calls, its previews, and whether it is still wanted."""

    def __init__(
        self, request: PictureRequest, thread: PictureThread, model: LoadedModel, steps: int
    ) -> None:
        self._request, self._thread, self._model, self._steps = request, thread, model, steps
        self._done = 0

    def make_unet(self) -> Any:
        """Return the stand-in for the U-Net, whose calls are run by the engine."""
        return make_stand_in(self._model.denoiser.unet, self._call)

    def _call(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        call = self._model.denoiser.read_call(*args, **kwargs)
        output = self._thread.call_denoiser(call)
        note_run(self._model.denoiser.layers)
        self._draw_preview(call.arguments, output)
        return (output,)

    def _draw_preview(self, arguments: Any, output: Tensor) -> None:
        parts = self._request.previews + 1  # The last part ends with the picture itself.
        before, now = (parts * step // self._steps for step in (self._done, self._done + 1))
        if self._request.previews and now > before and self._done + 1 < self._steps:
            preview = Preview(
                arguments["sample"], arguments["timestep"], output, self._request.job.guidance_scale
            )
            try:
                picture = draw_preview(self._model.pipe, preview)
            except Exception:  # a preview is worth no picture
                _log.exception("a preview failed")
            else:
                self._request.listener.on_preview(self._done + 1, picture)

    def finish_step(self) -> None:
        """Report a step, and end here if the picture is canceled: nothing is decoded for nobody."""
        self._done = min(self._done + 1, self._steps)  # Samplers of second order report every call.
        self._request.listener.on_step(self._done, self._steps)
        self._thread.check()
