"""One optimizer step: clipped gradients → AdamW → averaged weights; steps with NaN gradients are skipped.

The device decides whether gradients are finite, without a synchronization: AdamW receives `found_inf`, as
from GradScaler, and leaves weights and state unchanged, and so does the average. The log reads the faults
later.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from imprompt.training.settings import LoopSettings

FIRST_LOSS_SCALE = 2.0**12
"""Initial loss scale for float16, so that small gradients do not vanish; halved when gradients overflow."""

_GROW_AFTER = 2000
"""Number of good steps after which the loss scale doubles."""


class GradientFaults(NamedTuple):
    """Gradients that were not finite since the last report.

    Attributes:
        skipped: steps skipped in the whole run
        in_a_row: the longest series of them that the loss scale does not explain
        name: the first parameter whose gradient was not finite
    """

    skipped: int
    in_a_row: int
    name: str


class AveragedOptimizer:
    """AdamW with clipping, a loss scale for float16, and an average of the trained weights.

    Args:
        groups: parameter groups of torch, each with its "lr" and perhaps a "name"
        names: names of the parameters, in the order of the groups
        settings: settings of the loop

    Attributes:
        trained: the parameters
        averaged: their moving average, or themselves if `ema_decay` is 0
    """

    def __init__(self, groups: list[dict[str, Any]], names: Sequence[str], settings: LoopSettings) -> None:
        self.settings, self.names = settings, list(names)
        self.adamw: Any = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        self.rates = [group["lr"] for group in self.adamw.param_groups]
        self.groups = [str(group.get("name", "")) for group in self.adamw.param_groups]
        self.trained: list[nn.Parameter] = [p for group in self.adamw.param_groups for p in group["params"]]
        self.averaged: list[Tensor] = (
            [p.detach().clone() for p in self.trained] if settings.ema_decay else list(self.trained)
        )
        device = self.trained[0].device
        scale = FIRST_LOSS_SCALE if settings.precision == "fp16" else 1.0
        self.counters = {
            "loss scale": torch.tensor(scale, device=device),
            "good in a row": torch.tensor(0.0, device=device),
            "skipped": torch.tensor(0.0, device=device),
            "bad in a row": torch.tensor(0.0, device=device),
        }
        self._worst = torch.tensor(0.0, device=device)
        self._culprit = torch.tensor(-1.0, device=device)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of earlier passes."""
        (loss * self.counters["loss scale"]).backward()

    @torch.no_grad()
    def step(self, factor: float, step: int) -> dict[str, Tensor]:
        """Take one step with the accumulated gradients, reset them, and return their norms.

        Args:
            factor: factor of the learning rates
            step: number of the step, from 0
        """
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained]
        sum_over_processes(gradients)
        # One call for all tensors, as torch's own clip_grad_norm_ does it.
        foreach: Any = torch
        foreach._foreach_div_(gradients, self.counters["loss scale"])
        norms = torch.stack(foreach._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        is_bad = ~norm.isfinite()
        foreach._foreach_mul_(gradients, (self.settings.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0))
        for group, rate in zip(self.adamw.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.adamw.found_inf = is_bad.float()
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self._average(is_bad, step)
        self._count_faults(is_bad, norms)
        return {"gradient norm": norm, **self._norms_by_group(norms)}

    def _average(self, is_bad: Tensor, step: int) -> None:
        """Update the exponential moving average, whose memory is short in early steps."""
        if not self.settings.ema_decay:
            return
        decay = min(self.settings.ema_decay, (2 + step) / (11 + step))
        share = (1 - decay) * (~is_bad).float()
        for average, parameter in zip(self.averaged, self.trained, strict=True):
            average.lerp_(parameter, share)

    def _count_faults(self, is_bad: Tensor, norms: Tensor) -> None:
        counters, bad = self.counters, is_bad.float()
        scale = counters["loss scale"]
        # A scale that is too large overflows by itself, and halving it is the remedy.
        is_trouble = bad * (scale <= 1)
        first = (~norms.isfinite()).float().argmax()
        self._culprit = torch.where(is_bad & (self._culprit < 0), first.float(), self._culprit)
        counters["skipped"] += bad
        counters["bad in a row"] = (counters["bad in a row"] + 1) * is_trouble
        self._worst = torch.maximum(self._worst, counters["bad in a row"])
        if self.settings.precision == "fp16":
            good = (counters["good in a row"] + 1) * (1 - bad)
            grows = good >= _GROW_AFTER
            counters["loss scale"] = torch.where(
                is_bad, scale / 2, torch.where(grows, scale * 2, scale)
            ).clamp(min=1)
            counters["good in a row"] = torch.where(grows, 0.0, good)

    def _norms_by_group(self, norms: Tensor) -> dict[str, Tensor]:
        sizes = [len(group["params"]) for group in self.adamw.param_groups]
        parts = norms.split(sizes)
        return {
            f"gradient norm of the {name}": torch.linalg.vector_norm(part)
            for name, part in zip(self.groups, parts, strict=True)
            if name
        }

    def read_faults(self) -> GradientFaults:
        """Return what went wrong since the last call; this waits for the device."""
        culprit = int(self._culprit)
        faults = GradientFaults(
            int(self.counters["skipped"]), int(self._worst), self.names[culprit] if culprit >= 0 else ""
        )
        self._worst, self._culprit = torch.zeros_like(self._worst), torch.full_like(self._culprit, -1)
        return faults

    @contextlib.contextmanager
    def use_averages(self) -> Iterator[None]:
        """Put the averaged weights in place of the trained ones, to evaluate and to save."""
        if not self.settings.ema_decay:
            yield
            return
        current = [p.detach().clone() for p in self.trained]
        copy_values(self.trained, self.averaged)
        try:
            yield
        finally:
            copy_values(self.trained, current)

    def state(self, *, with_weights: bool = True) -> dict[str, Any]:
        """Return, on the CPU, all that an exact continuation needs.

        Args:
            with_weights: False if the objective writes the trained weights
        """
        state: dict[str, Any] = {
            "shapes": [tuple(p.shape) for p in self.trained],
            "optimizer": self.adamw.state_dict(),
            "counters": {name: float(value) for name, value in self.counters.items()},
        }
        # Copies: on a CPU the weights would change when averages replace them.
        if with_weights:
            state["trained"] = [p.detach().to("cpu", copy=True) for p in self.trained]
        if self.settings.ema_decay:
            state["averaged"] = [average.to("cpu", copy=True) for average in self.averaged]
        return state

    def roll_back(self, state: Mapping[str, Any]) -> None:
        """Restore the weights and moments of a state, but keep the counters of faults."""
        counters = self.counters
        self.load(state)
        self.counters = counters | {"bad in a row": torch.zeros_like(counters["bad in a row"])}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state; weights that it lacks must be in place already."""
        if "trained" in state:
            copy_values(self.trained, state["trained"])
        if self.settings.ema_decay:
            copy_values(self.averaged, state["averaged"])
        rates = [group["weight_decay"] for group in self.adamw.param_groups]
        self.adamw.load_state_dict(state["optimizer"])
        for group, decay in zip(self.adamw.param_groups, rates, strict=True):
            group["weight_decay"] = decay  # of the present settings
        self.counters = {
            name: torch.full_like(self.counters[name], value) for name, value in state["counters"].items()
        }


@torch.no_grad()
def copy_values(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into weights, in place."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def sum_over_processes(gradients: Sequence[Tensor]) -> None:
    """Sum the gradients of all processes, in place and in one message."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def learning_rate_factor(settings: LoopSettings, step: int) -> float:
    """Return the factor of the learning rate: warm-up, constant or cosine, cool-down to zero."""
    warm = (step + 1) / max(settings.warmup_steps, 1)
    cool = (settings.steps - step) / max(settings.cooldown_steps, 1)
    if getattr(settings, "schedule", "constant") == "cosine":
        cool = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return max(0.0, min(1.0, warm, cool))
