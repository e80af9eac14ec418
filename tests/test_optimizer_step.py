"""One step downhill, and the step that does not happen."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imprompt.training.config import AdapterLoop
from imprompt.training.optimizer_step import FIRST_LOSS_SCALE, AveragedOptimizer, learning_rate_factor
from imprompt.training.settings import LoopSettings


def settings(**changes: Any) -> AdapterLoop:
    return AdapterLoop(**{"steps": 10, "learning_rate": 0.1, "warmup_steps": 0, **changes})


def optimizer(**changes: Any) -> tuple[AveragedOptimizer, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    groups = [
        {"params": [model.weight], "lr": 0.1, "name": "layers"},
        {"params": [model.bias], "lr": 0.1, "name": "projection"},
    ]
    return AveragedOptimizer(groups, ["weight", "bias"], settings(**changes)), model


def step(one: AveragedOptimizer, model: nn.Linear, number: int, spoil: float = 0.0) -> dict[str, Tensor]:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    loss = model(x).square().mean() + spoil * model.bias.sum()
    one.backward(loss)
    return one.step(1.0, number)


def test_a_step_is_clipped_adamw() -> None:
    one, model = optimizer(ema_decay=0.0, max_gradient_norm=0.5)
    twin = nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.01)
    for number in range(5):
        norms = step(one, model, number)
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        adamw.zero_grad()
        twin(x).square().mean().backward()
        norm = nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        adamw.step()
        torch.testing.assert_close(norms["gradient norm"], norm)
    torch.testing.assert_close(model.weight, twin.weight)


def test_the_norms_of_the_parts_add_up() -> None:
    one, model = optimizer()
    norms = step(one, model, 0)
    parts = [norms[f"gradient norm of the {name}"] for name in ("layers", "projection")]
    torch.testing.assert_close(torch.hypot(*parts), norms["gradient norm"])


@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing_and_is_named(spoil: float) -> None:
    one, model = optimizer()
    step(one, model, 0)
    before = [w.clone() for w in (*model.parameters(), *one.averaged)]
    moments = [state["exp_avg"].clone() for state in one.adamw.state.values()]
    counted = [state["step"].clone() for state in one.adamw.state.values()]
    step(one, model, 1, spoil)
    assert all(map(torch.equal, before, (*model.parameters(), *one.averaged)))
    assert all(map(torch.equal, moments, (state["exp_avg"] for state in one.adamw.state.values())))
    assert all(map(torch.equal, counted, (state["step"] for state in one.adamw.state.values())))
    assert one.read_faults() == (1, 1, "bias")


def test_trouble_is_counted_in_a_row_and_told_once() -> None:
    one, model = optimizer()
    for number, spoil in enumerate([math.nan, math.nan, 0, math.nan]):
        step(one, model, number, spoil)
    assert one.read_faults() == (3, 2, "bias")
    step(one, model, 5)
    assert one.read_faults() == (3, 0, "")


def test_after_a_skipped_step_the_run_goes_on_as_if_it_had_not_been() -> None:
    (one, model), (other, twin) = optimizer(), optimizer()
    step(one, model, 0)
    step(one, model, 7, math.nan)
    step(one, model, 1)
    for number in range(2):
        step(other, twin, number)
    # The average's memory counts all steps, the weights only those that happened.
    assert torch.equal(model.weight, twin.weight)


def test_a_float16_run_scales_its_loss_and_lowers_the_scale_when_it_overflows() -> None:
    (scaled, model), (plain, twin) = optimizer(precision="fp16"), optimizer()
    step(scaled, model, 0)
    step(plain, twin, 0)
    torch.testing.assert_close(model.weight, twin.weight)
    step(scaled, model, 1, math.inf)
    assert float(scaled.counters["loss scale"]) == FIRST_LOSS_SCALE / 2
    assert scaled.read_faults().in_a_row == 0  # that is what the scale is for
    for number in range(12):
        step(scaled, model, number, math.inf)
    step(scaled, model, 99, math.inf)
    assert float(scaled.counters["loss scale"]) == 1
    assert scaled.read_faults().in_a_row == 2


def test_the_average_is_an_exponential_one_with_a_short_memory_at_first() -> None:
    one, model = optimizer(ema_decay=0.9)
    average, weights = model.weight.detach().clone(), []
    for number in range(30):
        step(one, model, number)
        weights.append(model.weight.detach().clone())
        decay = min(0.9, (2 + number) / (11 + number))
        average = decay * average + (1 - decay) * weights[-1]
    torch.testing.assert_close(one.averaged[0], average)
    with one.use_averages():
        assert torch.equal(model.weight, one.averaged[0])
    assert torch.equal(model.weight, weights[-1])


def test_without_an_average_the_weights_are_what_is_shown() -> None:
    one, model = optimizer(ema_decay=0.0)
    step(one, model, 0)
    with one.use_averages():
        assert torch.equal(one.averaged[0], model.weight)
    assert "averaged" not in one.state()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_state_goes_on_bit_for_bit(precision: str, ema_decay: float) -> None:
    whole, model = optimizer(precision=precision, ema_decay=ema_decay)
    for number in range(6):
        step(whole, model, number, math.nan if number == 1 else 0)
    first, twin = optimizer(precision=precision, ema_decay=ema_decay)
    for number in range(3):
        step(first, twin, number, math.nan if number == 1 else 0)
    second, heir = optimizer(precision=precision, ema_decay=ema_decay)
    second.load(first.state())
    for number in range(3, 6):
        step(second, heir, number)
    assert torch.equal(heir.weight, model.weight)
    assert torch.equal(second.averaged[0], whole.averaged[0])
    assert second.counters == whole.counters


def test_the_rate_warms_up_and_cools_down() -> None:
    plan = settings(steps=10, warmup_steps=2, cooldown_steps=4)
    assert [round(learning_rate_factor(plan, s), 2) for s in range(10)] == [
        0.5,
        1,
        1,
        1,
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
    ]
    cosine = settings(steps=4, schedule="cosine")
    assert [round(learning_rate_factor(cosine, s), 3) for s in range(4)] == [1, 0.854, 0.5, 0.146]
    assert learning_rate_factor(plan, 12) == 0  # past the end
    assert learning_rate_factor(LoopSettings(steps=1, warmup_steps=0), 0) == 1
