"""The training loop, the same for the stages of the embedded model and for every adapter.

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
from imprompt.runtime.foreign_models import first_line
from imprompt.runtime.precision import resolve_precision
from imprompt.training.checkpoints import Checkpoint, Checkpoints
from imprompt.training.objectives.objective import Objective
from imprompt.training.optimizer_step import AveragedOptimizer, GradientFaults, learning_rate_factor
from imprompt.training.ranks import join_processes
from imprompt.training.settings import LoopSettings
from imprompt.training.watching import Display, RunLog, write_environment

Passes = Sequence[Any]
"""One process' share of a step's batch, in one or several passes of equal size."""

Feed = Callable[[range], Iterator[Passes]]
"""Yields the passes of these steps, in order."""

MAX_BAD_STEPS = 3
"""After this number of successive steps with NaN or inf gradients the run goes back to its last
checkpoint."""


STATE_KEYS = ("step", "figures", "shapes", "optimizer", "counters")
"""Keys that every state holds."""


class Run:
    """A training run.

    Args:
        settings: settings of the loop
        objective: the model and its loss, on the device
        feed: this process' share of the data
        folder: folder of the run
        output: folder of the finished model; by default that of the run
        config: the whole configuration, for the log
        wandb: a Weights & Biases project, or ""
        on_samples: called with the folder after every sample grid
        notes: sentences for the log at the start
        data: numbers of "train" and "held_out" samples and their "digest"; a resumed run reports a change
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
        on_samples: Callable[[Path], Any] = lambda folder: None,
        notes: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings, self.objective, self.feed, self.folder = settings, objective, feed, folder
        self.output, self.config, self.wandb = output or folder, config, wandb
        self.on_samples, self.notes, self.data = on_samples, list(notes), dict(data or {})
        self.processes = join_processes()
        names = {id(p): name for name, p in objective.named_parameters()}
        groups = objective.parameter_groups()
        order = [names.get(id(p), "a trained weight") for group in groups for p in group["params"]]
        self.optimizer = AveragedOptimizer(groups, order, settings)
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep)
        self.step, self.stop_requested = 0, False
        self.figures: dict[str, float] = {}
        self.last_rollback = -1, 0
        self.log: RunLog | None = None
        self.display: Display | None = None

    # Start and end

    def resume(self) -> bool:
        """Continue from the latest checkpoint; return whether there is one."""
        if (last := self.checkpoints.load_latest()) is None:
            return False
        latest, state, notes = last
        self.restore_state(latest, state)
        self.optimizer.load(state)
        self.step, self.figures = state["step"], dict(state["figures"])
        self.notes += [*notes, *self.describe_data_changes(state.get("data", {}))]
        return True

    def describe_data_changes(self, before: Mapping[str, Any]) -> list[str]:
        """Return a sentence if the samples are not those of the checkpoint."""
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

    def restore_state(self, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
        """Check a state and restore the weights from the checkpoint's file if the state lacks them."""
        self.check_state(state)
        if "trained" not in state:
            self.objective.restore(checkpoint.folder)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            TrainingError: other weights than this run trains, more steps than it has, or something missing
        """
        if missing := [name for name in STATE_KEYS if name not in state]:
            raise TrainingError(
                f"the checkpoints in {self.checkpoints.folder} are not of a run of imprompt: they hold no "
                f"{missing[0]}; name another output folder, or delete them"
            )
        there, here = state["shapes"], [tuple(p.shape) for p in self.optimizer.trained]
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

    def train(self) -> bool:
        """Train to the last step or until a stop is requested; return whether training finished."""
        with self.stop_on_signals(), flush_denormals(), self.open_log():
            self.log_event(f"resumed at step {self.step}" if self.step else "started")
            for note in (*self.notes, *self.config_warnings()):
                self.log_event(note)
            if self.step == 0:
                self.evaluate(at_start=True)
                self.save()
            batches = self.feed(range(self.step, self.settings.steps))
            while self.step < self.settings.steps and not self.should_stop():
                self.advance(batches)
            if self.should_stop():
                self.save()
                self.log_event("interrupted; --resume latest goes on from here")
            else:
                self.finish()
        return not self.should_stop()

    def config_warnings(self) -> list[str]:
        """Return warnings about settings that are probably a mistake."""
        settings = self.settings
        peak = max(learning_rate_factor(settings, step) for step in spread_steps(settings.steps))
        if peak > 0.98:
            return []
        return [
            f"the learning rate reaches only {peak:.0%} of training.learning_rate: {settings.warmup_steps} "
            f"steps of warm-up and {settings.cooldown_steps} of cool-down are long for {settings.steps} steps"
        ]

    def advance(self, batches: Iterator[Passes]) -> None:
        """Take one step, and log, evaluate and save where that is due."""
        waiting_since = time.monotonic()
        passes = next(batches)
        self.waited += time.monotonic() - waiting_since
        parts = self.train_step(passes)
        if self.display is not None:
            self.display.advance(self.step)
        if self.step % self.settings.log_every == 0:
            self.report_step(parts)
        self.evaluate()
        if self.step % self.settings.save_every == 0 and self.step < self.settings.steps:
            self.save()

    def finish(self) -> None:
        """Evaluate, save the last checkpoint and export the model."""
        self.evaluate(at_end=True)
        self.save()
        if self.is_main:
            with self.optimizer.use_averages():
                self.objective.export(self.output)
        self.log_event("finished")

    # One step

    def train_step(self, passes: Passes) -> dict[str, Tensor]:
        """Run all passes and take one step; return the loss terms of this process and gradient norms."""
        share = 1 / (len(passes) * self.processes.num_processes)
        sums: dict[str, Tensor] = {}
        for batch in passes:
            with self.autocast():
                parts = self.objective.differentiate(
                    batch, lambda loss: self.optimizer.backward(loss * share)
                )
            for name, part in parts.items():
                sums[name] = sums.get(name, 0) + part.detach() / len(passes)
        norms = self.optimizer.step(learning_rate_factor(self.settings, self.step), self.step)
        self.step += 1
        return sums | norms

    def autocast(self) -> Any:
        """Return the autocast context for float32 weights that compute in a narrower format."""
        kind, dtype = self.processes.device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}
        narrow = dtype.get(resolve_precision(self.settings.precision, kind))
        return (
            torch.autocast(kind, narrow) if narrow and self.objective.autocasts else contextlib.nullcontext()
        )

    # Evaluation and checkpoints

    def report_step(self, parts: Mapping[str, Tensor]) -> None:
        """Log the figures of this step, which waits for the device, and handle bad gradients."""
        faults = self.optimizer.read_faults()
        seconds = time.monotonic() - self.started
        figures = {name: float(part) for name, part in parts.items()}
        figures |= {
            "learning rate": self.optimizer.adamw.param_groups[0]["lr"],
            "samples/s": (self.step - self.counted_from) * self.settings.batch_size / seconds,
            "waiting": min(1.0, self.waited / seconds),
            "skipped steps": faults.skipped,
        }
        self.log_figures(figures)
        self.started, self.counted_from, self.waited = time.monotonic(), self.step, 0.0
        if faults.name:
            self.log_event(f"steps were skipped: the gradient of {faults.name} was not finite")
        if faults.in_a_row >= MAX_BAD_STEPS:
            self.roll_back(faults)

    def roll_back(self, faults: GradientFaults) -> None:
        """Restore the last checkpoint's weights; the data go on, as the same batch would fail again.

        Raises:
            TrainingError: that was tried before, and no step was good since
        """
        last, name = self.checkpoints.load_latest(), faults.name
        step, skipped = self.last_rollback
        if last is None or self.step - step == faults.skipped - skipped:
            raise TrainingError(
                f"the gradients are not finite any more, at {name} first, and were not after going back to "
                f"the last checkpoint either; lower training.learning_rate or use another "
                f"training.precision than {self.settings.precision}"
            )
        latest, state, notes = last
        self.restore_state(latest, state)
        self.optimizer.roll_back(state)
        self.last_rollback = self.step, faults.skipped
        for sentence in notes:
            self.log_event(sentence)
        self.log_event(
            f"{MAX_BAD_STEPS} steps in a row were not finite: back to the weights of step {latest.step}"
        )

    def evaluate(self, *, at_start: bool = False, at_end: bool = False) -> None:
        """Evaluate held-out samples and draw a sample grid where due; only the main process does it."""
        settings = self.settings
        checks = (
            at_start or at_end or self.step % getattr(settings, "check_every", settings.sample_every) == 0
        )
        draws = at_start or at_end or self.step % settings.sample_every == 0
        # `finish` does what is due at the last step.
        if (self.step == settings.steps and not at_end) or not (checks or draws) or not self.is_main:
            return
        with self.optimizer.use_averages(), torch.no_grad():
            figures = self.objective.measure_held_out() if checks else {}
            picture, similarities = self.draw_samples() if draws else (None, {})
        self.figures |= figures | similarities
        self.log_figures(figures | similarities)
        if picture is not None and self.log is not None:
            self.log.write_picture(self.step, picture, f"step {self.step}")
            self.on_samples(self.folder)
        self.started, self.counted_from, self.waited = time.monotonic(), self.step, 0.0

    def draw_samples(self) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the sample grid; if that fails, for instance for lack of memory, training goes on."""
        try:
            return self.objective.draw_and_measure()
        except Exception as error:
            self.log_event(f"no sample grid: {first_line(error)}")
            return None, {}

    def save(self) -> None:
        """Write a checkpoint; only the main process does it."""
        if not self.is_main:
            return
        # Without an average the model's file holds the trained weights, which saves a third of the space.
        apart = bool(self.settings.ema_decay) or not self.objective.restores
        state = {"step": self.step, "figures": self.figures, "data": self.data}
        state |= self.optimizer.state(with_weights=apart)
        with self.optimizer.use_averages():
            self.checkpoints.save(self.step, state, self.figures, self.objective.save)

    # Log and signals

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and messages."""
        return self.processes.is_main_process

    def log_figures(self, figures: Mapping[str, float]) -> None:
        """Write figures to the log and the terminal."""
        if self.log is not None and self.display is not None and figures:
            self.log.write_figures(self.step, figures)
            self.display.show_figures(self.step, figures)

    def log_event(self, sentence: str) -> None:
        """Write a sentence about the run to the log and the terminal."""
        if self.log is not None and self.display is not None:
            self.log.write_event(self.step, sentence)
            self.display.show_event(self.step, sentence)

    @contextlib.contextmanager
    def open_log(self) -> Iterator[None]:
        """Open the log and the display while the run goes on."""
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

    def should_stop(self) -> bool:
        """Return whether a signal has come; processes agree on it at steps that log."""
        if self.processes.num_processes == 1:
            return self.stop_requested
        if self.step % self.settings.log_every == 0:
            flag = torch.tensor(float(self.stop_requested), device=self.processes.device)
            torch.distributed.all_reduce(flag)
            self.agreed_to_stop = bool(flag)
        return self.agreed_to_stop

    agreed_to_stop = False

    @contextlib.contextmanager
    def stop_on_signals(self) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM save and stop after the current step; a second one stops at once."""

        def ask(signum: int, frame: object) -> None:
            if self.stop_requested:
                raise KeyboardInterrupt
            self.stop_requested = True

        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Flush denormal numbers to zero; in averages of dead units they halve the speed of a CPU."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def spread_steps(steps: int) -> list[int]:
    """Return a thousand steps of a run, evenly spread, or all steps of a shorter one."""
    return list(range(0, steps, -(-steps // 1000)))
