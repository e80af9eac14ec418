"""Distillation of a base into a LoRA for few steps: its parts against diffusers' schedulers, then runs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler

import tiny
import tiny_bases
from imprompt.errors import ConfigError
from imprompt.training.adapters import build_run, list_frozen_modules
from imprompt.training.config import parse_config
from imprompt.training.estimates import read_shapes
from imprompt.training.frozen_base import FrozenBase, hash_weights
from imprompt.training.loop import Run
from imprompt.training.objectives import few_steps
from imprompt.training.objectives.few_steps import LORA_FILE
from imprompt.training.watching.card import build_card
from imprompt.training.watching.commands import generate_command
from imprompt.training.watching.history import read_history
from short_runs import STEPS, build_base, config, read_log, states, write_home

DISTILLS: dict[str, Any] = {
    "distillation__rank": 2,
    "distillation__guidance_min": 2.0,
    "distillation__guidance_max": 4.0,
    "distillation__solver_steps": 10,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def one_noise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_steps, "BANDS", (0.5,))


def run_of(home: Path, name: str, base: FrozenBase | None = None, **more: Any) -> tuple[Run, Any]:
    """A run at its beginning, and its objective."""
    run = build_run(config(home, f"few-{name}", **{**DISTILLS, **more}), base or build_base())
    return run, run.objective


def batch_of(run: Run) -> Any:
    (batch,) = next(iter(run.feed(range(1))))
    return batch


# The equations


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_solver_step_is_that_of_diffusers(home: Path, prediction: str) -> None:
    base = build_base(prediction_type=prediction)
    run, objective = run_of(home, prediction, base)
    ddim: Any = DDIMScheduler.from_config(
        base.scheduler.config, clip_sample=False, prediction_type=prediction
    )
    ddim.set_timesteps(len(ddim.alphas_cumprod))  # so that a step of it is one of time
    batch = batch_of(run)
    noisy = tiny_bases.numbers(*batch.draws.noise.shape)
    count = len(noisy)
    later, earlier = torch.full((count,), 500), torch.full((count,), 499)
    weights = torch.full((count,), 3.0)
    with torch.no_grad():
        ours = objective.solve(batch, noisy, later, earlier, weights)
        sides = [objective.denoise(batch, noisy, later, is_blank=blank) for blank in (True, False)]
        guided = sides[0] + 3 * (sides[1] - sides[0])
        theirs = ddim.step(guided, 500, noisy).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_solver_substeps_are_steps_one_after_another(home: Path) -> None:
    run, objective = run_of(home, "substeps", distillation__solver_substeps=2)
    batch = batch_of(run)
    noisy = tiny_bases.numbers(*batch.draws.noise.shape)
    first, middle, last = (torch.full((len(noisy),), time) for time in (300, 250, 200))
    weights = torch.full((len(noisy),), 3.0)
    with torch.no_grad():
        twice = objective.solve(batch, noisy, first, last, weights)
        objective.unet.disable_adapters()
        half = objective.step(batch, noisy, first, middle, weights)
        assert torch.allclose(twice, objective.step(batch, half, middle, last, weights), atol=1e-6)


def test_a_new_lora_already_takes_the_bases_own_step(home: Path) -> None:
    """Its change begins as zero, so against one solver step without guidance it has nothing to learn."""
    one: dict[str, Any] = {"distillation__guidance_min": 1.0, "distillation__guidance_max": 1.0}
    run, objective = run_of(home, "own-step", distillation__method="progressive", **one)
    batch = batch_of(run)
    with torch.no_grad():
        errors = objective.errors(batch, torch.arange(len(batch.draws.noise)) % 10, batch.draws.uniform)
        more: dict[str, Any] = {"distillation__method": "progressive", "distillation__solver_substeps": 2}
        _, two = run_of(home, "two", **more, **one)
        assert two.errors(batch, torch.zeros(len(batch.draws.noise)).long(), batch.draws.uniform).min() > 0
    assert errors.max() < 1e-9


def test_a_progressive_lora_is_trained_at_the_times_of_trailing_ddim(home: Path) -> None:
    _, objective = run_of(home, "trailing", distillation__method="progressive", distillation__solver_steps=4)
    later, earlier = objective.solver_times(torch.arange(4))
    scheduler = few_steps.few_step_scheduler(objective.base.pipe, "progressive")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == later.flip(0).tolist()
    assert earlier[1:].tolist() == later[:-1].tolist()


def test_the_students_picture_is_that_of_the_lcm_scheduler(home: Path) -> None:
    run, objective = run_of(home, "boundary")
    lcm: Any = LCMScheduler.from_config(objective.base.scheduler.config, clip_sample=False)
    lcm.set_timesteps(4)
    batch, time = batch_of(run), int(lcm.timesteps[1])
    noisy = tiny_bases.numbers(*batch.draws.noise.shape)
    times = torch.full((len(noisy),), time)
    with torch.no_grad():
        ours = objective.consistent(batch, noisy, times)
        theirs = lcm.step(objective.denoise(batch, noisy, times), lcm.timesteps[1], noisy).denoised
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_at_time_zero_the_state_is_the_picture(home: Path) -> None:
    run, objective = run_of(home, "zero")
    noisy = tiny_bases.numbers(*batch_of(run).draws.noise.shape)
    with torch.no_grad():
        assert torch.equal(objective.consistent(batch_of(run), noisy, torch.zeros(len(noisy)).long()), noisy)


def test_the_solvers_times_are_those_of_the_lcm_scheduler(home: Path) -> None:
    """All times at which it may be called are times at which the LoRA was trained."""
    _, objective = run_of(home, "times", distillation__solver_steps=50)
    trained, before = objective.solver_times(torch.arange(50))
    lcm: Any = LCMScheduler.from_config(objective.base.scheduler.config)
    for count in (1, 2, 4, 8):
        lcm.set_timesteps(count)
        assert set(lcm.timesteps.tolist()) <= set(trained.tolist())
    assert before.tolist() == [0, *trained.tolist()[:-1]]


# Runs


def test_a_run_trains_the_lora_alone_and_goes_on_bit_for_bit(home: Path) -> None:
    base = build_base()
    whole, objective = run_of(home, "whole", base)
    before = {name: value.clone() for name, value in base.unet.state_dict().items() if "lora" not in name}
    others = hash_weights(*list_frozen_modules(objective.config, base))
    assert whole.train()
    after = base.unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert hash_weights(*list_frozen_modules(objective.config, base)) == others
    first, *_, last = states(whole)
    assert any(not torch.equal(a, b) for a, b in zip(first["trained"], last["trained"], strict=True))
    assert all(value > 0 for value in read_log(whole, "loss"))
    for steps in (1, STEPS):
        part, _ = run_of(home, "parts", training__steps=steps, training__warmup_steps=0)
        assert part.resume() == (steps > 1)
        assert part.train()
    assert (part.folder / LORA_FILE).read_bytes() == (whole.folder / LORA_FILE).read_bytes()


def test_the_file_is_a_lora_that_diffusers_loads(home: Path) -> None:
    run, objective = run_of(home, "file", training__learning_rate=0.1, training__ema_decay=0.0)
    assert run.train()
    pipe = copy.deepcopy(build_base().pipe)
    pipe.load_lora_weights(run.folder)
    given: dict[str, Any] = tiny.unet_input(pipe.unet)
    given["encoder_hidden_states"] = tiny_bases.numbers(2, 5, 64)
    with torch.no_grad():
        loaded, trained = pipe.unet(**given).sample, objective.unet(**given).sample
        assert torch.allclose(loaded, trained, atol=1e-5)
        assert not torch.allclose(loaded, build_base().unet(**given).sample, atol=1e-4)


@pytest.mark.slow
def test_with_an_adapter_its_image_prompts_are_distilled_and_it_stays(home: Path) -> None:
    plain = build_run(config(home, "an-adapter"), build_base())
    assert plain.train()
    file = str(plain.folder / "adapter.safetensors")
    run, objective = run_of(home, "with-adapter", adapter__start=file)
    before = hash_weights(objective.mechanism.adapter)
    batch = batch_of(run)
    other = batch._replace(inputs={name: value + 1 for name, value in batch.inputs.items()})
    with torch.no_grad():
        losses = [objective.loss(one)["loss"] for one in (batch, other)]
    assert not torch.equal(*losses)
    assert run.train()
    assert hash_weights(objective.mechanism.adapter) == before


def test_without_an_adapter_nothing_of_references_is_cached(home: Path) -> None:
    run, objective = run_of(home, "text-alone")
    assert objective.config.takes == ()
    assert objective.mechanism is None
    assert batch_of(run).inputs == {}
    shapes = read_shapes(
        parse_config({"preset": "mini-few-steps", "output": "x", "adapter": {"start": ""}}, "a test")
    )
    assert shapes.inputs == 0


def test_the_card_tells_how_to_use_the_lora(home: Path) -> None:
    run, objective = run_of(home, "card")
    run.train()
    run.folder.joinpath("config.json").write_text(objective.config.model_dump_json())
    history = read_history(run.folder)
    card = build_card(history)
    assert "A LoRA with which" in card
    assert "LCMScheduler.from_config" in card
    assert "--speed lcm" in generate_command(history)


def test_a_progressive_lora_says_how_it_is_sampled(home: Path) -> None:
    more = {"distillation__method": "progressive", "distillation__solver_steps": 5}
    run, objective = run_of(home, "progressive", **more)
    assert run.train()
    run.folder.joinpath("config.json").write_text(objective.config.model_dump_json())
    history = read_history(run.folder)
    assert "--speed hyper --steps 5" in generate_command(history)
    card = build_card(history)
    assert "needs 5 steps, by progressive distillation" in card
    assert 'DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")' in card
    assert "num_inference_steps=5" in card


# What cannot be


def test_a_flow_matching_base_is_refused(home: Path) -> None:
    base = build_base()
    base.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ConfigError, match="trained on flow matching"):
        run_of(home, "flow", base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter__mechanism": "concatenated"}, 'distillation.rank goes with adapter.mechanism "decoupled"'),
        ({"distillation__guidance_min": 9.0}, "guidance_min 9 is larger than guidance_max 4"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    home: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        config(home, "never", **{**DISTILLS, **settings})


@pytest.mark.parametrize(("preset", "steps"), [("mini-few-steps", 4), ("sd15-lcm", 50), ("sdxl-lcm", 50)])
def test_the_presets_distill(preset: str, steps: int) -> None:
    parsed = parse_config({"preset": preset, "output": "x"}, "a test")
    assert parsed.distills
    assert parsed.distillation.solver_steps == steps
