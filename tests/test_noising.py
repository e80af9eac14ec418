"""The base's own noise, against diffusers' schedulers."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from torch import Tensor

import tiny
from imprompt.errors import ConfigError
from imprompt.training.config import LossSettings
from imprompt.training.noising import Noising

BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
TIMES = torch.tensor([0, 1, 500, 998, 999])


def predicting(what: Any) -> DDIMScheduler:
    return DDIMScheduler(**BETAS, prediction_type=what)


def draws() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 4, 3, 3, generator=generator), torch.randn(5, 4, 3, 3, generator=generator)


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, DPMSolverMultistepScheduler])
def test_noised_latents_are_diffusers_own(kind: Any) -> None:
    scheduler, (latents, noise) = kind(**BETAS), draws()
    ours = Noising(scheduler, LossSettings()).add_noise(latents, noise, TIMES)
    theirs = DDIMScheduler(**BETAS).add_noise(latents, noise, TIMES)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_velocity_is_diffusers_own() -> None:
    scheduler, (latents, noise) = DDIMScheduler(**BETAS, prediction_type="v_prediction"), draws()
    ours = Noising(scheduler, LossSettings()).target(latents, noise, TIMES)
    theirs = scheduler.get_velocity(latents, noise, TIMES)  # type: ignore[arg-type]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_diffusers_own(shift: float) -> None:
    latents, noise = draws()
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=shift)
    noising = Noising(scheduler, LossSettings())
    labels = noising.labels[TIMES]
    assert set(labels.tolist()) <= set(scheduler.timesteps.tolist())
    theirs = scheduler.scale_noise(latents, labels, noise)  # type: ignore[arg-type]
    torch.testing.assert_close(noising.add_noise(latents, noise, TIMES), theirs)
    torch.testing.assert_close(noising.target(latents, noise, TIMES), noise - latents)


@pytest.mark.parametrize(("prediction", "index"), [("epsilon", 1), ("sample", 0)])
def test_the_prediction_is_read_from_the_scheduler(prediction: str, index: int) -> None:
    pair = draws()
    noising = Noising(predicting(prediction), LossSettings())
    assert torch.equal(noising.target(*pair, TIMES), pair[index])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_latents_alike_whatever_is_predicted(prediction: str) -> None:
    """An error δ of x is an error of ε of √SNR δ, and of v of √(SNR + 1) δ."""
    settings = LossSettings(weighting="min-snr", min_snr_gamma=5.0)
    noising = Noising(predicting(prediction), settings)
    times = torch.arange(0, 1000, 37)
    snr = (noising.signal[times] / noising.noise[times]) ** 2
    scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[prediction]
    torch.testing.assert_close(noising.weights(times) * scale, snr.clamp(max=5.0))


def test_without_weighting_every_time_counts_alike() -> None:
    assert torch.equal(Noising(tiny.scheduler(), LossSettings()).weights(TIMES), torch.ones(5))


def test_times_cover_the_schedule_evenly_or_by_the_logit() -> None:
    uniform, normal = torch.rand(20_000), torch.randn(20_000)
    even = Noising(tiny.scheduler(), LossSettings()).times(uniform, normal)
    assert (even.min(), even.max()) == (0, 999)
    assert abs(float(even.float().mean()) - 499.5) < 10
    early = LossSettings(timesteps="logit-normal", timestep_location=-1.0)
    median = float(Noising(tiny.scheduler(), early).times(uniform, normal).float().median())
    assert abs(median - 1000 * torch.tensor(-1.0).sigmoid()) < 15


def test_the_noise_without_signal_can_be_learnt_by_velocity_only() -> None:
    zero = {**BETAS, "rescale_betas_zero_snr": True}
    weights = Noising(
        DDIMScheduler(**zero, prediction_type="v_prediction"), LossSettings(weighting="min-snr")
    ).weights(TIMES)
    assert weights.isfinite().all()
    with pytest.raises(ConfigError, match="zero terminal SNR"):
        Noising(DDIMScheduler(**zero), LossSettings())


def test_a_weighting_without_meaning_is_refused() -> None:
    with pytest.raises(ConfigError, match="not defined for a flow-matching base"):
        Noising(FlowMatchEulerDiscreteScheduler(), LossSettings(weighting="min-snr"))


def test_eulers_scheduler_has_the_same_schedule() -> None:
    euler, ddim = (Noising(kind(**BETAS), LossSettings()) for kind in (EulerDiscreteScheduler, DDIMScheduler))
    torch.testing.assert_close(euler.signal, ddim.signal)
