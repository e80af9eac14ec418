"""The training loop: one for the embedded model's stages and for every adapter.

    for step in steps:  loss(batch(step)) → gradients → clipped → AdamW → average

Batch and randomness are pure functions of (seed, step), so a run that was stopped, or killed, goes on from
its last checkpoint to the same weights, bit for bit, that it would have reached at once.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from PIL import Image
from torch import Tensor

from imprompt.errors import TrainingError
from imprompt.runtime.precision import resolve_precision
from imprompt.training.checkpoints import Checkpoint, Checkpoints
from imprompt.training.descent import Descent, Trouble, factor_at
from imprompt.training.objectives.objective import Objective
from imprompt.training.ranks import this_process
from imprompt.training.settings import LoopSettings
from imprompt.training.watching import Display, RunLog, write_environment

Passes = Sequence[Any]
"""One process' share of a step's batch, in one or several pieces of equal size."""

Feed = Callable[[range], Iterator[Passes]]
"""Gives the passes of these steps, in order."""

BAD_IN_A_ROW = 3
"""So many steps without finite gradients, one after another, and the run goes back to its last checkpoint."""


STATE_KEYS = ("step", "figures", "shapes", "optimizer", "counters")
"""What the state of every run holds."""


class Run:
    """One training run: what is trained, how, and where it is.

    Args:
        settings: of the loop
        objective: what is trained, on its device
        feed: this process' share of the data
        folder: of the run
        output: where the finished model goes; by default the run's folder
        config: everything that was asked for, for the log
        wandb: a Weights & Biases project, or nothing
        on_look: called with the folder after every sample grid
        notes: what is to be said at the start
        data: "train" and "held_out", how many samples, and their "digest"; a resumed run says if they changed
    """

    def __init__(
        self,
        settings: LoopSettings,
        objective: Objective,
        feed: Feed,
        folder: Path,
        *,
        output: Path | None = None,
        config: Mapping[str, Any],
        wandb: str = "",
        on_look: Callable[[Path], Any] = lambda folder: None,
        notes: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.objective, self.feed, self.folder = settings, objective, feed, folder
        self.output, self.config, self.wandb = output or folder, config, wandb
        self.on_look, self.notes, self.data = on_look, list(notes), dict(data or {})
        self.processes = this_process()
        names = {id(p): name for name, p in objective.named_parameters()}
        groups = objective.parameter_groups()
        order = [names.get(id(p), "a trained weight") for group in groups for p in group["params"]]
        self.descent = Descent(groups, order, settings)
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        self.step, self.stop_asked = 0, False
        self.figures: dict[str, float] = {}
        self.went_back = -1, 0
        self.log: RunLog | None = None
        self.display: Display | None = None

    # From start to end

    def resume(self) -> bool:
        """Go on from the latest checkpoint, if there is one; says whether there was."""
        if (found := self.checkpoints.load_latest()) is None:
            return False
        latest, state, notes = found
        self.put_in_place(latest, state)
        self.descent.load(state)
        self.step, self.figures = state["step"], dict(state["figures"])
        self.notes += [*notes, *self.data_changes(state.get("data", {}))]
        return True

    def data_changes(self, before: Mapping[str, Any]) -> list[str]:
        """Say, in a sentence, if the samples are not those that the checkpoint was trained on."""
        if not before or not self.data or before == self.data:
            return []
        then, now = (
            f"{data['train']:,} samples to train on and {data['held_out']:,} held out"
            for data in (before, self.data)
        )
        return [
            f"the data has changed since step {self.step}: {then} then, {now} now"
            + (", but others" if then == now else "")
            + "; the run goes on with what there is now, not to what it would have become"
        ]

    def put_in_place(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Check a state; if it does not hold the weights, those of the checkpoint's file are put in place."""
        self.check_state(state)
        if "trained" not in state:
            self.objective.restore(checkpoint.folder)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse the checkpoint of something else.

        Raises:
            TrainingError: other weights than this run trains, more steps than it has, or something missing
        """
        if missing := [name for name in STATE_KEYS if name not in state]:
            raise TrainingError(
                f"the checkpoints in {self.checkpoints.folder} are not of a run of imprompt: they hold no "
                f"{missing[0]}; name another output folder, or delete them"
            )
        there, here = state["shapes"], [tuple(p.shape) for p in self.descent.trained]
        if there != here:
            raise TrainingError(
                f"the checkpoints in {self.checkpoints.folder} are of another model ({len(there)} trained "
                f"weights, here {len(here)}, or of other shapes); name another output folder, or delete them"
            )
        if state["step"] > self.settings.steps:
            raise TrainingError(
                f"the run in {self.folder} has taken {state['step']} steps already; training.steps is "
                f"{self.settings.steps}"
            )

    def go(self) -> bool:
        """Train to the last step, or until it is asked to stop; says whether it finished."""
        with self.asked_to_stop_by_signals(), denormals_flushed(), self.reported():
            self.event(f"resumed at step {self.step}" if self.step else "started")
            for note in (*self.notes, *self.doubts()):
                self.event(note)
            if self.step == 0:
                self.watch(at_start=True)
                self.save()
            batches = self.feed(range(self.step, self.settings.steps))
            while self.step < self.settings.steps and not self.must_stop():
                self.advance(batches)
            if self.must_stop():
                self.save()
                self.event("interrupted; --resume latest goes on from here")
            else:
                self.finish()
        return not self.must_stop()

    def doubts(self) -> list[str]:
        """What may not be meant: a learning rate that is never reached."""
        settings = self.settings
        peak = max(factor_at(settings, step) for step in sampled(settings.steps))
        if peak > 0.98:
            return []
        return [
            f"the learning rate reaches only {peak:.0%} of training.learning_rate: {settings.warmup_steps} "
            f"steps of warm-up and {settings.cooldown_steps} of cool-down are long for {settings.steps} steps"
        ]

    def advance(self, batches: Iterator[Passes]) -> None:
        """Take one step, and do what is due after it."""
        asked = time.monotonic()
        passes = next(batches)
        self.waited += time.monotonic() - asked
        parts = self.train_step(passes)
        if self.display is not None:
            self.display.advance(self.step)
        if self.step % self.settings.log_every == 0:
            self.report(parts)
        self.watch()
        if self.step % self.settings.save_every == 0 and self.step < self.settings.steps:
            self.save()

    def finish(self) -> None:
        """The last look, the last checkpoint, the finished model."""
        self.watch(at_end=True)
        self.save()
        if self.is_main:
            with self.descent.averages_in_place():
                self.objective.export(self.output)
        self.event("finished")

    # One step

    def train_step(self, passes: Passes) -> dict[str, Tensor]:
        """Gradients of every pass, then one step; returns the loss' parts of this process, and norms."""
        share = 1 / (len(passes) * self.processes.num_processes)
        sums: dict[str, Tensor] = {}
        for batch in passes:
            with self.autocast():
                parts = self.objective.differentiate(batch, lambda loss: self.descent.backward(loss * share))
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach() / len(passes)
        norms = self.descent.step(factor_at(self.settings, self.step), self.step)
        self.step += 1
        return sums | norms

    def autocast(self) -> Any:
        """For float32 weights that are to compute in less: products are of the narrow kind."""
        kind, dtype = self.processes.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}
        narrow = dtype.get(resolve_precision(self.settings.precision, kind))
        return (
            torch.autocast(kind, narrow) if narrow and self.objective.autocasts else contextlib.nullcontext()
        )

    # What is due now and then

    def report(self, parts: Mapping[str, Tensor]) -> None:
        """Read this step's figures, which waits for the device; see whether the run can go on."""
        trouble = self.descent.trouble()
        seconds = time.monotonic() - self.started
        figures = {name: float(part) for name, part in parts.items()}
        figures |= {
            "learning rate": self.descent.optimizer.param_groups[0]["lr"],
            "samples/s": (self.step - self.counted_from) * self.settings.batch_size / seconds,
            "waiting": min(1.0, self.waited / seconds),
            "skipped steps": trouble.skipped,
        }
        self.say(figures)
        self.started, self.counted_from, self.waited = time.monotonic(), self.step, 0.0
        if trouble.name:
            self.event(f"steps were skipped: the gradient of {trouble.name} was not finite")
        if trouble.in_a_row >= BAD_IN_A_ROW:
            self.go_back(trouble)

    def go_back(self, trouble: Trouble) -> None:
        """Put the last checkpoint's weights in place; the data goes on, or the same batch would come back.

        Raises:
            TrainingError: that has been done before, and no step was good since
        """
        found, name = self.checkpoints.load_latest(), trouble.name
        step, skipped = self.went_back
        if found is None or self.step - step == trouble.skipped - skipped:
            raise TrainingError(
                f"the gradients are not finite any more, at {name} first, and were not after going back to "
                f"the last checkpoint either; lower training.learning_rate or use another "
                f"training.precision than {self.settings.precision}"
            )
        latest, state, notes = found
        self.put_in_place(latest, state)
        self.descent.go_back(state)
        self.went_back = self.step, trouble.skipped
        for sentence in notes:
            self.event(sentence)
        self.event(
            f"{BAD_IN_A_ROW} steps in a row were not finite: back to the weights of step {latest.step}"
        )

    def watch(self, *, at_start: bool = False, at_end: bool = False) -> None:
        """Look at the held-out samples and draw, where that is due; the main process does it."""
        settings = self.settings
        checks = (
            at_start or at_end or self.step % getattr(settings, "check_every", settings.sample_every) == 0
        )
        draws = at_start or at_end or self.step % settings.sample_every == 0
        # What is due at the last step comes with its end.
        if (self.step == settings.steps and not at_end) or not (checks or draws) or not self.is_main:
            return
        with self.descent.averages_in_place(), torch.no_grad():
            figures = self.objective.held_out() if checks else {}
            picture, seen = self.drawn() if draws else (None, {})
        self.figures |= figures | seen
        self.say(figures | seen)
        if picture is not None and self.log is not None:
            self.log.picture(self.step, picture, f"step {self.step}")
            self.on_look(self.folder)
        self.started, self.counted_from, self.waited = time.monotonic(), self.step, 0.0

    def drawn(self) -> tuple[Image.Image | None, dict[str, float]]:
        """The sample grid; one that cannot be drawn (memory, a scheduler) is no reason to lose a run."""
        try:
            return self.objective.look()
        except Exception as error:
            self.event(
                f"no sample grid: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
            return None, {}

    def save(self) -> None:
        """A checkpoint; the main process writes it."""
        if not self.is_main:
            return
        # Without an average the file of the model holds the very weights: a third of the room.
        apart = bool(self.settings.ema_decay) or not self.objective.restores
        state = {"step": self.step, "figures": self.figures, "data": self.data}
        state |= self.descent.state(with_weights=apart)
        with self.descent.averages_in_place():
            self.checkpoints.save(self.step, state, self.figures, self.objective.save)

    # Saying what happens

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.processes.is_main_process

    def say(self, figures: Mapping[str, float]) -> None:
        """Figures to the log and to the terminal."""
        if self.log is not None and self.display is not None and figures:
            self.log.figures(self.step, figures)
            self.display.figures(self.step, figures)

    def event(self, sentence: str) -> None:
        """What happened, to the log and to the terminal."""
        if self.log is not None and self.display is not None:
            self.log.event(self.step, sentence)
            self.display.event(self.step, sentence)

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Log and display, open while the run goes on."""
        self.started, self.counted_from, self.waited = time.monotonic(), self.step, 0.0
        if not self.is_main:
            yield
            return
        log = RunLog(self.folder, config=self.config, from_step=self.step, wandb=self.wandb)
        with log, Display(self.settings.steps, self.step) as display:
            write_environment(self.folder)
            self.log, self.display = log, display
            try:
                yield
            finally:
                self.log = self.display = None

    def must_stop(self) -> bool:
        """Whether a signal has come; several processes agree on it where figures are read anyway."""
        if self.processes.num_processes == 1:
            return self.stop_asked
        if self.step % self.settings.log_every == 0:
            flag = torch.tensor(float(self.stop_asked), device=self.processes.device)
            torch.distributed.all_reduce(flag)
            self.agreed_to_stop = bool(flag)
        return self.agreed_to_stop

    agreed_to_stop = False

    @contextlib.contextmanager
    def asked_to_stop_by_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a checkpoint and an end after this step; a second one ends at once."""

        def ask(signum: int, frame: object) -> None:
            if self.stop_asked:
                raise KeyboardInterrupt
            self.stop_asked = True

        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)


@contextlib.contextmanager
def denormals_flushed() -> Iterator[None]:
    """Take denormal numbers for zero: the averages of dead units are such, and slow a CPU down by half."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def sampled(steps: int) -> list[int]:
    """A thousand steps of a run, evenly spread; all of a shorter one."""
    return list(range(0, steps, -(-steps // 1000)))
