"""One step downhill: clipped gradients → AdamW → averaged weights; a step that is not finite does not happen.

Whether it is finite is decided on the device, without waiting for it: AdamW is told (`found_inf`, as
GradScaler tells it) and leaves weights and state as they are, the average likewise. What was wrong is read
with the log.
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
"""Of float16 gradients, so that small ones do not vanish; halved when they overflow."""

_GROW_AFTER = 2000
"""Good steps after which the loss scale doubles."""


class Trouble(NamedTuple):
    """What went wrong since it was last asked for.

    Attributes:
        skipped: steps that did not happen, in the whole run
        in_a_row: the longest series of them that is no matter of the loss scale
        name: of the first parameter whose gradient was not finite
    """

    skipped: int
    in_a_row: int
    name: str


class Descent:
    """The trained weights, their optimiser and their average.

    Args:
        groups: as the optimiser wants them, each with its "lr" and perhaps a "name"
        names: of the parameters, in the groups' order
        settings: of the loop

    Attributes:
        trained: the parameters
        averaged: their moving average, or themselves if `ema_decay` is 0
    """

    def __init__(self, groups: list[dict[str, Any]], names: Sequence[str], settings: LoopSettings) -> None:
        self.settings, self.names = settings, list(names)
        self.optimizer: Any = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.groups = [str(group.get("name", "")) for group in self.optimizer.param_groups]
        self.trained: list[nn.Parameter] = [
            p for group in self.optimizer.param_groups for p in group["params"]
        ]
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
        """Add a loss' gradients to those that are there."""
        (loss * self.counters["loss scale"]).backward()

    @torch.no_grad()
    def step(self, factor: float, step: int) -> dict[str, Tensor]:
        """Take one step with the gradients that are there, and forget them; return norms.

        Args:
            factor: of the learning rates
            step: number of the step, from 0
        """
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.trained]
        shared(gradients)
        # One call for all tensors, as torch's own clip_grad_norm_ does it.
        foreach: Any = torch
        foreach._foreach_div_(gradients, self.counters["loss scale"])
        norms = torch.stack(foreach._foreach_norm(gradients))
        norm = torch.linalg.vector_norm(norms)
        is_bad = ~norm.isfinite()
        foreach._foreach_mul_(gradients, (self.settings.max_gradient_norm / (norm + 1e-6)).clamp(max=1.0))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.found_inf = is_bad.float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average(is_bad, step)
        self._count(is_bad, norms)
        return {"gradient norm": norm, **self._by_group(norms)}

    def _average(self, is_bad: Tensor, step: int) -> None:
        """Exponential moving average, with a short memory while the run is young."""
        if not self.settings.ema_decay:
            return
        decay = min(self.settings.ema_decay, (2 + step) / (11 + step))
        share = (1 - decay) * (~is_bad).float()
        for average, parameter in zip(self.averaged, self.trained, strict=True):
            average.lerp_(parameter, share)

    def _count(self, is_bad: Tensor, norms: Tensor) -> None:
        counters, bad = self.counters, is_bad.float()
        scale = counters["loss scale"]
        # Too large a scale overflows by itself: that is what halving it is for.
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

    def _by_group(self, norms: Tensor) -> dict[str, Tensor]:
        sizes = [len(group["params"]) for group in self.optimizer.param_groups]
        parts = norms.split(sizes)
        return {
            f"gradient norm of the {name}": torch.linalg.vector_norm(part)
            for name, part in zip(self.groups, parts, strict=True)
            if name
        }

    def trouble(self) -> Trouble:
        """Read what went wrong since the last call; waits for the device."""
        culprit = int(self._culprit)
        found = Trouble(
            int(self.counters["skipped"]), int(self._worst), self.names[culprit] if culprit >= 0 else ""
        )
        self._worst, self._culprit = torch.zeros_like(self._worst), torch.full_like(self._culprit, -1)
        return found

    @contextlib.contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """The averaged weights in the trained ones' place, for looking and for saving."""
        if not self.settings.ema_decay:
            yield
            return
        current = [p.detach().clone() for p in self.trained]
        write(self.trained, self.averaged)
        try:
            yield
        finally:
            write(self.trained, current)

    def state(self, *, with_weights: bool = True) -> dict[str, Any]:
        """Everything that an exact continuation needs; on the CPU.

        Args:
            with_weights: False where the objective writes the trained weights themselves
        """
        state: dict[str, Any] = {
            "shapes": [tuple(p.shape) for p in self.trained],
            "optimizer": self.optimizer.state_dict(),
            "counters": {name: float(value) for name, value in self.counters.items()},
        }
        # Copies: on a CPU the weights would change when averages stand in their place.
        if with_weights:
            state["trained"] = [p.detach().to("cpu", copy=True) for p in self.trained]
        if self.settings.ema_decay:
            state["averaged"] = [average.to("cpu", copy=True) for average in self.averaged]
        return state

    def go_back(self, state: Mapping[str, Any]) -> None:
        """Take a state's weights and moments, but go on counting what went wrong."""
        counters = self.counters
        self.load(state)
        self.counters = counters | {"bad in a row": torch.zeros_like(counters["bad in a row"])}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; weights that it does not hold are in place already."""
        if "trained" in state:
            write(self.trained, state["trained"])
        if self.settings.ema_decay:
            write(self.averaged, state["averaged"])
        rates = [group["weight_decay"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, decay in zip(self.optimizer.param_groups, rates, strict=True):
            group["weight_decay"] = decay  # what the settings say now
        self.counters = {
            name: torch.full_like(self.counters[name], value) for name, value in state["counters"].items()
        }


@torch.no_grad()
def write(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy values into weights."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)


def shared(gradients: Sequence[Tensor]) -> None:
    """Add up every process' gradients, in place: one message, whatever the number of tensors."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def factor_at(settings: LoopSettings, step: int) -> float:
    """The learning rate's factor: linear warm-up, then constant or cosine, linear cool-down to zero."""
    warm = (step + 1) / max(settings.warmup_steps, 1)
    cool = (settings.steps - step) / max(settings.cooldown_steps, 1)
    if getattr(settings, "schedule", "constant") == "cosine":
        cool = (1 + math.cos(math.pi * step / settings.steps)) / 2
    return max(0.0, min(1.0, warm, cool))
