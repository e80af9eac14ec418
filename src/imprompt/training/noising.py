"""The base's own noise: x_t and what the network is to predict, read from its scheduler.

    diffusion   x_t = √ᾱ_t x + √(1 - ᾱ_t) ε     epsilon: ε    v_prediction: √ᾱ_t ε - √(1 - ᾱ_t) x   sample: x
    flow        x_σ = (1 - σ) x + σ ε            velocity: ε - x

Min-SNR (Hang et al. 2023, https://arxiv.org/abs/2303.09556): the loss in x is weighted by min(SNR, γ).
"""

from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor

from imprompt.errors import ConfigError
from imprompt.training.config import LossSettings


class Noising:
    """The noise schedule and the prediction target of a base.

    Args:
        scheduler: scheduler of the base's pipeline
        settings: weighting and distribution of times

    Attributes:
        prediction: "epsilon", "v_prediction", "sample" or "flow"
        signal: √ᾱ_t for every t, or 1 - σ
        noise: √(1 - ᾱ_t), or σ

    Raises:
        ConfigError: an unsupported scheduler, or a weighting that is not defined for it
    """

    def __init__(self, scheduler: Any, settings: LossSettings, device: torch.device | str = "cpu") -> None:
        self.settings = settings
        if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
            self.prediction = "flow"
            # A fresh copy, as sampling changes the times of a scheduler.
            fresh: Any = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)
            sigmas, labels = fresh.sigmas.flip(0), fresh.timesteps.flip(0)
            signal, noise = 1 - sigmas, sigmas
        elif getattr(scheduler, "alphas_cumprod", None) is not None:
            self.prediction = scheduler.config["prediction_type"]
            alphas = scheduler.alphas_cumprod.double()
            signal, noise, labels = alphas.sqrt(), (1 - alphas).sqrt(), torch.arange(len(alphas))
        else:
            raise ConfigError(
                f"the base's scheduler {type(scheduler).__name__} does not say how it adds noise"
            )
        self.signal, self.noise = signal.float().to(device), noise.float().to(device)
        self.labels = labels.to(device, torch.float32 if self.prediction == "flow" else torch.int64)
        self._check()

    def _check(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction", "sample", "flow"):
            raise ConfigError(
                f"the base's scheduler predicts {self.prediction!r}, which imprompt cannot train"
            )
        if self.prediction == "epsilon" and float(self.signal[-1]) < 1e-4:
            raise ConfigError(
                "the base's scheduler ends without signal (zero terminal SNR) and predicts the noise, which "
                'teaches nothing there: such a base predicts "v_prediction"'
            )
        if self.prediction == "flow" and self.settings.weighting == "min-snr":
            raise ConfigError('loss.weighting "min-snr" is not defined for a flow-matching base; use "none"')

    def times(self, uniform: Float[Tensor, " batch"], normal: Float[Tensor, " batch"]) -> Tensor:
        """Return a place in the schedule for each sample, from a uniform and a normal draw.

        The share of the way is the uniform draw itself, or sigmoid(normal + location): logit-normal.
        """
        location = self.settings.timestep_location
        share = uniform if self.settings.timesteps == "uniform" else (normal + location).sigmoid()
        return (share * len(self.signal)).long().clamp(max=len(self.signal) - 1)

    def add_noise(
        self, latents: Float[Tensor, "batch _ _ _"], noise: Float[Tensor, "batch _ _ _"], times: Tensor
    ) -> Float[Tensor, "batch _ _ _"]:
        """Return x_t."""
        return _per_sample(self.signal[times]) * latents + _per_sample(self.noise[times]) * noise

    def target(
        self, latents: Float[Tensor, "batch _ _ _"], noise: Float[Tensor, "batch _ _ _"], times: Tensor
    ) -> Float[Tensor, "batch _ _ _"]:
        """Return what the network is to predict at x_t."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return latents
        if self.prediction == "flow":
            return noise - latents
        return _per_sample(self.signal[times]) * noise - _per_sample(self.noise[times]) * latents

    def weights(self, times: Tensor) -> Float[Tensor, " batch"]:
        """Return each sample's weight: 1, or the factor of its squared error that min(SNR, γ) implies.

        With SNR = ᾱ / (1 - ᾱ) the error of ε is SNR times that of x, the error of v SNR + 1 times.
        """
        if self.settings.weighting == "none":
            return torch.ones_like(self.signal[times])
        snr = (self.signal[times] / self.noise[times]) ** 2
        scale = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[self.prediction]
        return snr.clamp(max=self.settings.min_snr_gamma) / scale


def _per_sample(values: Float[Tensor, " batch"]) -> Float[Tensor, "batch 1 1 1"]:
    return values[:, None, None, None]
