"""The training loop: one for every stage. The model knows nothing of it.

    for step in steps:  loss(batch(step), generator(step)) → gradients → clipped → AdamW → EMA

Batch and randomness are pure functions of (seed, step), so an interrupted run goes on exactly where it was.
"""

import contextlib
import copy
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from imprompt.training.checkpoint import load_state, save_state
from imprompt.training.data import EmojiBatches
from imprompt.training.objectives import Objective, build_objective
from imprompt.training.objectives.autoencoding import fit_codec
from imprompt.training.recipe import CodecRecipe, Recipe
from imprompt.training.settings import in_cache


def train(recipe: Recipe, *, resume: bool = False) -> Path:
    """Run a recipe to its end, or to Ctrl-C / SIGTERM, which save first; return the model's folder.

    Writes `state.pt`, `log.jsonl`, TensorBoard events and sample grids to `<output>/runs/<stage>/`, and when
    finished the stage's model (with averaged weights) to `<output>/`.
    """
    output = in_cache(recipe.output)
    if isinstance(recipe, CodecRecipe):
        return fit_codec(recipe, output)
    run = Run(recipe, output, build_objective(recipe, output))
    if resume:
        run.load(load_state(run.folder))
    run.go()
    return output


class Run:
    """One training run: objective, optimiser, averaged weights, and where it is."""

    def __init__(self, recipe: Recipe, output: Path, objective: Objective) -> None:
        # Flush-to-zero: the averaged weights of dead units are denormal and slow a CPU down by half.
        torch.set_flush_denormal(True)
        self.recipe, self.output, self.objective = recipe, output, objective
        self.folder = output / "runs" / getattr(recipe, "stage", "run")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        objective.to(self.device)
        pictures = objective.pictures(in_cache(recipe.data))
        self.batches = EmojiBatches(pictures, recipe.batch_size, seed=recipe.seed, mixture=recipe.mixture)
        self.optimizer = torch.optim.AdamW(
            objective.parameter_groups(), weight_decay=recipe.weight_decay, fused=True
        )
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.averaged = [p.detach().clone() for p in self.trained]
        self.step, self.stop_asked = 0, False

    def go(self) -> None:
        """Train from where the run is to its last step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "recipe.json").write_text(self.recipe.model_dump_json(indent=1))
        with self.saving_on_signals(), SummaryWriter(str(self.folder)) as board, progress() as bar:
            task = bar.add_task("training", total=self.recipe.steps, completed=self.step)
            started, seen = time.monotonic(), 0
            while self.step < self.recipe.steps and not self.stop_asked:
                parts = self.train_step()
                seen += self.recipe.batch_size
                bar.update(task, completed=self.step)
                if self.step % self.recipe.log_every == 0:  # reading a figure waits for the device
                    bar.update(task, description=f"loss {float(parts['loss']):.4f}")
                    rate = seen / (time.monotonic() - started)
                    self.log(board, {name: float(part) for name, part in parts.items()} | {"samples/s": rate})
                if self.step % self.recipe.sample_every == 0:
                    self.look(board)
                if self.step % self.recipe.save_every == 0:
                    self.save()
            self.save()
            if not self.stop_asked and self.step % self.recipe.sample_every:
                self.look(board)
        if not self.stop_asked:
            with self.averaged_weights():
                self.objective.export(self.output)

    def train_step(self) -> dict[str, Tensor]:
        """One step: loss, gradients, clipping, AdamW, averaging; the loss' parts, detached."""
        generator = torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + self.step)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            parts = self.objective.loss(self.batches[self.step], generator)
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.recipe.max_gradient_norm)
        self.optimizer.step()
        self.step += 1
        self.average()
        return {name: part.detach() for name, part in parts.items()} | {"gradient norm": norm}

    def schedule(self) -> float:
        """The learning rate's factor: linear warm-up, plateau, linear cool-down to zero."""
        recipe = self.recipe
        warm = (self.step + 1) / max(recipe.warmup_steps, 1)
        cool = (recipe.steps - self.step) / max(recipe.cooldown_steps, 1)
        return min(1.0, warm, cool)

    @torch.no_grad()
    def average(self) -> None:
        """Exponential moving average of the trained weights, with a short memory while the run is young."""
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        for average, trained in zip(self.averaged, self.trained, strict=True):
            average.lerp_(trained, 1 - decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The averaged weights in the trained ones' place, for looking and for export."""
        current = [p.detach().clone() for p in self.trained]
        self.write(self.averaged)
        try:
            yield
        finally:
            self.write(current)

    @torch.no_grad()
    def write(self, values: list[Tensor]) -> None:
        """Copy values into the trained weights."""
        for parameter, value in zip(self.trained, values, strict=True):
            parameter.copy_(value)

    def look(self, board: SummaryWriter) -> None:
        """Held-out figures and a sample grid, with the averaged weights."""
        with self.averaged_weights(), torch.no_grad():
            self.log(board, {f"held-out {name}": value for name, value in self.objective.held_out().items()})
            picture = self.objective.picture()
        if picture is not None:
            picture.save(self.folder / f"sample-{self.step:06d}.png")

    def log(self, board: SummaryWriter, figures: dict[str, float]) -> None:
        """Figures of this step to TensorBoard and to `log.jsonl`."""
        for name, value in figures.items():
            board.add_scalar(name, value, self.step)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(
                json.dumps({"step": self.step, "time": round(time.time(), 1)} | rounded(figures)) + "\n"
            )

    def save(self) -> None:
        """The whole state of the run, atomically."""
        weights = {"trained": self.trained, "averaged": self.averaged}
        tensors = {name: [w.detach().cpu() for w in values] for name, values in weights.items()}
        save_state(self.folder, {"step": self.step, "optimizer": self.optimizer.state_dict(), **tensors})

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.step = state["step"]
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.write(state["trained"])
        self.averaged = [w.to(self.device) for w in state["averaged"]]

    @contextlib.contextmanager
    def saving_on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM ask for a stop after the current step."""

        def ask(signum: int, frame: object) -> None:
            self.stop_asked = True

        old = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)


def rounded(figures: dict[str, float]) -> dict[str, float | None]:
    """Figures with six significant digits; JSON has no NaN."""
    return {k: float(f"{v:.6g}") if math.isfinite(v) else None for k, v in figures.items()}


def progress() -> Progress:
    """The bar of a run."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    return Progress(*columns, refresh_per_second=1)
