"""A base that needs few steps, by distillation into a LoRA.

    x_s  = DDIM(x_t, t → s) of the base, guided by w               one solver step or several, s < t

    consistency (LCM-LoRA)
    f(x, t) = c_skip(t) x + c_out(t) x̂(x, t)                     x̂: the picture that the U-Net predicts
    loss = huber(f_θ(x_t, t) - f_θ(x_s, s))                        without gradients of the second

    progressive
    loss = huber(DDIM_θ(x_t, t → s) - x_s)                         one step of the LoRA, without guidance

Luo et al. 2023, "Latent Consistency Models" (arXiv 2310.04378), algorithm 1, and "LCM-LoRA" (arXiv
2311.05556): sampled by diffusers' `LCMScheduler`, whose c_skip and c_out are these. Salimans & Ho 2022,
"Progressive Distillation" (arXiv 2202.00512), algorithm 2, in one round, with the guided base of Meng et al.
2023 (arXiv 2210.03142): sampled by `DDIMScheduler` with trailing times, in as many steps as there are times.
Guidance is distilled too, so the result is sampled at a guidance scale of 1. With an adapter the image prompt
is one of the conditions that are distilled, beside the text; the adapter itself stays as it is.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from jaxtyping import Float, Int
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch import Tensor

from imprompt.errors import ConfigError
from imprompt.generation.pipeline_call import call_pipeline, make_generators
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.batches import PromptBatch
from imprompt.training.config import TrainingConfig
from imprompt.training.denoising import predict
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.mechanisms import DecoupledMechanism
from imprompt.training.objectives.cached_latents import LatentObjective, move_batch, per_sample
from imprompt.training.sheets import picture_grid, thumbnails_to_images

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name under which diffusers looks for a LoRA in a folder."""

CHANGED_LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""The layers that get a low-rank change, those of latent-consistency/lcm-lora-sdv1-5."""

SIGMA_DATA, TIME_SCALE = 0.5, 10.0
"""Constants of c_skip and c_out, as in diffusers' `LCMScheduler`."""

HUBER = 1e-3
"""The c of the pseudo-Huber loss √(d² + c²) - c."""

BANDS = (0.1, 0.3, 0.5, 0.7, 1.0)
"""Shares of the solver's steps at which the held-out loss is measured."""

SHOWN_STEPS = (8, 4, 2)
"""Numbers of steps in the sample grid of a consistency distillation, below the base's own picture."""


class FewStepObjective(LatentObjective):
    """Distillation of a base into a LoRA.

    Args:
        config: the run
        base: the frozen models; its U-Net gets the LoRA's layers
        mechanism: an adapter whose image prompts are distilled too, attached to the base; None for text alone
        samples: the cached samples

    Raises:
        ConfigError: the base is trained on flow matching, which has no DDIM step
    """

    def __init__(
        self, config: TrainingConfig, base: FrozenBase, mechanism: DecoupledMechanism | None, samples: Any
    ) -> None:
        super().__init__(config, base, samples)
        check_prediction(self.noising.prediction, config.base.model)
        self.mechanism, rank = mechanism, config.distillation.rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(CHANGED_LAYERS))
            base.unet.add_adapter(lora)
        self.unet: Any = base.unet
        trained = [parameter for parameter in self.unet.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        self.lora_parameters = trained

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the LoRA's parameters."""
        rate = self.config.training.learning_rate
        return [{"params": self.lora_parameters, "lr": rate, "name": "lora"}]

    # Loss

    def loss(self, batch: PromptBatch) -> dict[str, Tensor]:
        """Return the distance between a state and one solver step before it, for the student."""
        batch, draws = move_batch(batch, self.base.device), batch.draws
        steps = (draws.uniform * self.config.distillation.solver_steps).long()
        weights = torch.special.ndtr(draws.normal)  # uniform
        return {"loss": self.errors(batch, steps, weights).mean()}

    def errors(
        self, batch: PromptBatch, steps: Int[Tensor, " batch"], weights: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        """Return the loss of each sample at a solver step; `weights`, 0–1, choose its guidance scale."""
        draws, distillation = batch.draws, self.config.distillation
        later, earlier = self.solver_times(steps)
        latents = self.base.sample_latents(batch.moments, draws.latent_noise)
        noisy = self.noising.add_noise(latents, draws.noise, later)
        low, high = distillation.guidance_min, distillation.guidance_max
        with torch.no_grad():
            solved = self.solve(batch, noisy, later, earlier, low + (high - low) * weights)
        if distillation.method == "progressive":
            distance = self.jump(batch, noisy, later, earlier) - solved
        else:
            with torch.no_grad():
                target = self.consistent(batch, solved, earlier)
            distance = self.consistent(batch, noisy, later) - target
        return ((distance**2 + HUBER**2).sqrt() - HUBER).mean(dim=(1, 2, 3))

    def solver_times(self, steps: Int[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """Return the time of each solver step, from 0, and the time one step before it, 0 at least."""
        size = len(self.noising.signal) // self.config.distillation.solver_steps
        later = (steps + 1) * size - 1
        return later, (later - size).clamp(min=0)

    def consistent(
        self, batch: PromptBatch, noisy: Float[Tensor, "batch _ _ _"], times: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch _ _ _"]:
        """Return f(x, t) of the student."""
        scaled = per_sample(times, noisy) * TIME_SCALE
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        picture, _ = self.split(noisy, times, self.denoise(batch, noisy, times))
        return skip * noisy + out * picture

    def jump(
        self, batch: PromptBatch, noisy: Tensor, later: Tensor, earlier: Tensor
    ) -> Float[Tensor, "batch _ _ _"]:
        """Take one DDIM step of the student, without guidance."""
        picture, noise = self.split(noisy, later, self.denoise(batch, noisy, later))
        return self.noising.add_noise(picture, noise, earlier)

    def solve(
        self, batch: PromptBatch, noisy: Tensor, later: Tensor, earlier: Tensor, weights: Tensor
    ) -> Float[Tensor, "batch _ _ _"]:
        """Take guided DDIM steps of the base, without the LoRA, at times that are evenly apart."""
        count = self.config.distillation.solver_substeps
        times = [later + (earlier - later) * step // count for step in range(count + 1)]
        self.unet.disable_adapters()
        try:
            for start, end in itertools.pairwise(times):
                noisy = self.step(batch, noisy, start, end, weights)
        finally:
            self.unet.enable_adapters()
        return noisy

    def step(
        self, batch: PromptBatch, noisy: Tensor, later: Tensor, earlier: Tensor, weights: Tensor
    ) -> Float[Tensor, "batch _ _ _"]:
        """Take one guided DDIM step."""
        conditional = self.denoise(batch, noisy, later)
        blank = self.denoise(batch, noisy, later, is_blank=True)
        guided = torch.lerp(blank, conditional, per_sample(weights, noisy))
        picture, noise = self.split(noisy, later, guided)
        return self.noising.add_noise(picture, noise, earlier)

    def split(self, noisy: Tensor, times: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """Return the picture and the noise that a prediction means."""
        signal, noise = (per_sample(some[times], noisy) for some in (self.noising.signal, self.noising.noise))
        if self.noising.prediction == "v_prediction":
            return signal * noisy - noise * predicted, noise * noisy + signal * predicted
        if self.noising.prediction == "epsilon":
            return (noisy - noise * predicted) / signal, predicted
        return predicted, (noisy - signal * predicted) / noise

    def denoise(
        self, batch: PromptBatch, noisy: Tensor, times: Tensor, *, is_blank: bool = False
    ) -> Float[Tensor, "batch _ _ _"]:
        """Return the U-Net's prediction, in float32; blank is guidance's negative branch."""
        draws = batch.draws
        dropped = torch.ones_like(draws.no_text)
        text = self.text_of(batch, dropped=dropped if is_blank else draws.no_text)
        added = self.base.build_added_conditions(text.get("pooled_text"), batch.size_condition)
        with self.condition(batch, dropped if is_blank else draws.no_image), self.fast_products(noisy):
            states, labels = text["text_embeddings"], self.noising.labels[times]
            return predict(self.unet, noisy.to(self.base.dtype), labels, states, added).float()

    def condition(self, batch: PromptBatch, dropped: Tensor) -> contextlib.AbstractContextManager[Any]:
        """Let the references of a batch act, if there is an adapter."""
        if self.mechanism is None:
            return contextlib.nullcontext()
        return self.mechanism.condition_on(self.inputs_of(batch, dropped))

    # Evaluation

    @torch.no_grad()
    def measure_held_out(self) -> dict[str, float]:
        """Return the loss by solver step, with the same noise at every call."""
        count, losses = self.config.distillation.solver_steps, {}
        for step in sorted({max(round(band * count), 1) - 1 for band in BANDS}):
            errors = []
            for batch in self.read_held_out_batches():
                moved = move_batch(batch, self.base.device)
                steps = torch.full((len(moved.moments),), step, device=self.base.device)
                errors.append(self.errors(moved, steps, torch.full_like(moved.draws.uniform, 0.5)).cpu())
            losses[f"held-out loss at step {step + 1}"] = torch.cat(errors).mean().item()
        return {"held-out loss": sum(losses.values()) / len(losses), **losses}

    @torch.no_grad()
    def draw_samples(self) -> Image.Image:
        """Draw held-out references, and pictures of their captions: by the base, and in few steps."""
        watch = self.config.watch
        rows = self.samples.held_out[: watch.references].tolist()
        references = [thumbnails_to_images(self.samples.thumbnails(row))[0] for row in rows]
        self.unet.disable_adapters()
        try:
            drawn = [self.generate(rows, watch.sampling_steps, watch.guidance_scale)]
        finally:
            self.unet.enable_adapters()
        distillation = self.config.distillation
        is_progressive = distillation.method == "progressive"
        with use_scheduler(self.base.pipe, few_step_scheduler(self.base.pipe, distillation.method)):
            counts = (distillation.solver_steps,) if is_progressive else SHOWN_STEPS
            drawn += [self.generate(rows, steps, 1.0) for steps in counts]
        side = drawn[0][0].width
        return picture_grid([[one.resize((side, side)) for one in row] for row in (references, *drawn)])

    def generate(self, rows: Sequence[int], steps: int, guidance_scale: float | int) -> list[Image.Image]:
        """Generate images of samples' captions and references."""
        size = self.config.data.size
        call: dict[str, Any] = {
            "prompt": [self.samples.caption(row) for row in rows],
            "negative_prompt": [""] * len(rows),
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "generator": make_generators(range(len(rows))),
            "height": size,
            "width": size,
        }
        if self.mechanism is None:
            return call_pipeline(self.base.pipe, call)
        embeddings: list[ImageEmbeddings] = [self.embeddings(row) for row in rows]
        return self.mechanism.generate(self.base.pipe, embeddings, 1.0, call)

    # Writing

    def save(self, folder: Path) -> None:
        """Write the LoRA in diffusers' layout."""
        layers = cast(Any, get_peft_model_state_dict(self.unet))
        type(self.base.pipe).save_lora_weights(folder, unet_lora_layers=layers, weight_name=LORA_FILE)

    def export(self, output: Path) -> None:
        """Write the finished LoRA."""
        self.save(output)


def few_step_scheduler(pipe: Any, method: str) -> Any:
    """Return the scheduler that samples with the LoRA, with the noise levels of the pipeline's own."""
    if method == "progressive":
        return DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    return LCMScheduler.from_config(pipe.scheduler.config)


def check_prediction(prediction: str, model: str) -> None:
    """Refuse a base that is trained on flow matching.

    Raises:
        ConfigError: see above
    """
    if prediction == "flow":
        raise ConfigError(
            f"{model} is trained on flow matching; distillation.rank is for diffusion bases (Stable "
            "Diffusion 1, 2 and XL): set it to 0"
        )


@contextlib.contextmanager
def use_scheduler(pipe: Any, scheduler: Any) -> Iterator[None]:
    """Give a pipeline another scheduler for a while."""
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield
    finally:
        pipe.scheduler = before
