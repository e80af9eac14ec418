"""The loss of an adapter on a frozen base, trained on cached samples.

    loss = mean w_t ‖target - prediction(x_t, t, c_t, c_i)‖²       (Ye et al. 2023, equation 6)

Target and weight are the base's own (`noising`). Image, text or both are dropped at times; a dropped image is
a zero embedding before the projection, or for features those of a gray image. The negative branch of guidance
uses the same blank; the file names it (`unconditional`).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from imprompt.generation.pipeline_call import make_generators
from imprompt.generation.transformer_bases import is_flux
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.inputs.encoder import strip_folders
from imprompt.training.batches import PromptBatch
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.mechanisms import Mechanism
from imprompt.training.objectives.cached_latents import LatentObjective, move_batch
from imprompt.training.sheets import picture_grid, thumbnails_to_images
from imprompt.training.similarity import SimilarityJudge

ADAPTER_FILE = "adapter.safetensors"

BANDS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Noise levels at which the held-out loss is measured, as shares of the schedule."""


class ImagePromptObjective(LatentObjective):
    """The loss of an adapter on a frozen base.

    Args:
        config: the run
        base: the frozen models
        mechanism: what is trained, attached to the base
        samples: the cached samples
    """

    restores = True

    def __init__(self, config: TrainingConfig, base: FrozenBase, mechanism: Mechanism, samples: Any) -> None:
        super().__init__(config, base, samples)
        self.mechanism, self.trained = mechanism, mechanism.trained
        self.judge = SimilarityJudge(config.watch.judge, base.image_encoder, base.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the projection, the layers, and the base's weights where they train."""
        projection = getattr(self.trained, "projection", self.trained)
        parts = {"projection": list(projection.parameters()), "layers": [], "base": []}
        rest = "base" if self.mechanism.trains_base else "layers"
        known = {id(p) for p in parts["projection"]}
        parts[rest] = [p for p in self.trained.parameters() if id(p) not in known]
        rate = self.config.training.learning_rate
        base_rate = self.config.training.base_learning_rate or rate / 10
        return [
            {"params": some, "lr": base_rate if name == "base" else rate, "name": name}
            for name, some in parts.items()
            if some
        ]

    def loss(self, batch: PromptBatch) -> dict[str, Tensor]:
        """Return the loss; with gradient checkpointing use `differentiate`."""
        return self.differentiate(batch, lambda loss: None)

    def differentiate(self, batch: PromptBatch, backward: Callable[[Tensor], None]) -> dict[str, Tensor]:
        """Noise, condition, predict, compare; call `backward` while the prompts still act."""
        batch = move_batch(batch, self.base.device)
        text = self.text_of(batch, dropped=batch.draws.no_text)
        inputs = self.inputs_of(batch, dropped=batch.draws.no_image)
        times = self.noising.times(batch.draws.uniform, batch.draws.normal)
        with self.mechanism.condition_on(inputs) as denoise:
            mean_errors = self.mean_errors(denoise, batch, text, times)
            base_loss = (mean_errors * self.noising.weights(times)).mean()
            states, draws = text["text_embeddings"], batch.draws
            loss = base_loss + self.mechanism.more_loss(inputs, states, draws.uniform, draws.noise)
            backward(loss)
        return {"loss": loss}

    def mean_errors(
        self, denoise: Any, batch: PromptBatch, text: Mapping[str, Tensor], times: Tensor
    ) -> Float[Tensor, " batch"]:
        """Return each sample's mean squared error inside its mask."""
        latents = self.base.sample_latents(batch.moments, batch.draws.latent_noise)
        noise = batch.draws.noise + self.config.loss.noise_offset * batch.draws.offset
        noisy = self.noising.add_noise(latents, noise, times).to(self.base.dtype)
        added = self.base.build_added_conditions(
            text.get("pooled_text"), batch.size_condition, self.config.loss.guidance_scale
        )
        with self.fast_products(noisy):
            predicted = denoise(noisy, self.noising.labels[times], text["text_embeddings"], added)
        squares = F.mse_loss(predicted.float(), self.noising.target(latents, noise, times), reduction="none")
        if batch.mask is None:
            return squares.mean(dim=(1, 2, 3))
        looked_at = batch.mask.expand_as(squares)
        return (squares * looked_at).sum(dim=(1, 2, 3)) / looked_at.sum(dim=(1, 2, 3)).clamp(min=1)

    # Evaluation

    @torch.no_grad()
    def measure_held_out(self) -> dict[str, float]:
        """Return the loss by noise level, and its gaps to shuffled and to no references."""
        batches = [move_batch(batch, self.base.device) for batch in self.read_held_out_batches()]
        levels = [round(share * len(self.noising.signal)) for share in BANDS]
        with_text_losses = {
            t: self.measure_held_out_errors(batches, t, with_text=True).mean().item() for t in levels
        }
        reference_batches = {"true": batches, "shuffled": shuffle_references(batches), "none": batches}
        errors = {
            which: torch.stack(
                [
                    self.measure_held_out_errors(some, t, with_text=False, with_image=which != "none")
                    for t in levels
                ]
            ).mean(0)
            for which, some in reference_batches.items()
        }
        gaps = errors["shuffled"] - errors["true"]
        return {
            "held-out loss": sum(with_text_losses.values()) / len(with_text_losses),
            **{f"held-out loss at {t}": value for t, value in with_text_losses.items()},
            "gap to shuffled": gaps.mean().item(),
            "gap to none": (errors["none"] - errors["true"]).mean().item(),
            "held-out samples": len(gaps),
            **({"gap's standard error": (gaps.var() / len(gaps)).sqrt().item()} if len(gaps) > 1 else {}),
        }

    def measure_held_out_errors(
        self, batches: Sequence[PromptBatch], level: int, *, with_text: bool, with_image: bool = True
    ) -> Float[Tensor, " samples"]:
        """Return the error of each held-out sample at one noise level, on the CPU, in float64."""
        errors: list[Tensor] = []
        for batch in batches:
            every = torch.ones(len(batch.moments), dtype=torch.bool, device=self.base.device)
            text = self.text_of(batch, dropped=~every if with_text else every)
            times = torch.full((len(every),), level, device=self.base.device)
            inputs = self.inputs_of(batch, dropped=~every if with_image else every)
            with self.mechanism.condition_on(inputs) as denoise:
                errors.append(self.mean_errors(denoise, batch, text, times))
        return torch.cat(errors).double().cpu()

    @torch.no_grad()
    def draw_and_measure(self) -> tuple[Image.Image, dict[str, float]]:
        """Draw references, then every prompt at every λ, and measure the similarities."""
        watch = self.config.watch
        rows = self.samples.held_out[: watch.references].tolist()
        references = [thumbnails_to_images(self.samples.thumbnails(row))[0] for row in rows]
        images = [self.embeddings(row) for row in rows]
        images_of = {
            (prompt, scale): self.generate(images, self.prompts(prompt, rows), scale)
            for prompt in watch.prompts
            for scale in watch.scales
        }
        first = images_of[watch.prompts[0], max(watch.scales)]
        figures = self.judge.measure(first, references, self.prompts(watch.prompts[0], rows))
        side = max(first[0].width, references[0].width)
        sheet = [references, *images_of.values()]
        return picture_grid(
            [[one.resize((side, side)) for one in row] for row in sheet], zoom=max(1, 128 // side)
        ), figures

    def generate(
        self, images: Sequence[ImageEmbeddings], prompts: list[str], scale: float | int
    ) -> list[Image.Image]:
        """Generate images from the same noise at every call."""
        watch, size = self.config.watch, self.config.data.size
        call = {
            "prompt": prompts,
            "negative_prompt": [""] * len(prompts),  # what training drops a text to, of SDXL too
            "num_inference_steps": watch.sampling_steps,
            "guidance_scale": watch.guidance_scale,
            "generator": make_generators(range(len(prompts))),
            "height": size,
            "width": size,
        }
        if is_flux(self.base.pipe):
            # Its own guidance scale is the one that a distilled base is given, as in training.
            call |= {
                "true_cfg_scale": watch.guidance_scale,
                "guidance_scale": self.config.loss.guidance_scale,
            }
        return self.mechanism.generate(self.base.pipe, images, scale, call)

    # Writing

    def save(self, folder: Path) -> None:
        """Write an adapter file that can generate."""
        self.mechanism.save(folder / ADAPTER_FILE, self.metadata())

    def restore(self, folder: Path) -> None:
        """Load the weights of a checkpoint's adapter file."""
        self.mechanism.restore(folder / ADAPTER_FILE)

    def export(self, output: Path) -> None:
        """Write the finished adapter."""
        self.save(output)

    def metadata(self) -> dict[str, str]:
        """Return the facts on training in the adapter's file, without the folders of this machine."""
        base = self.config.base
        return {
            "steps": str(self.steps_taken()),
            "seed": str(self.config.training.seed),
            "base": strip_folders(base.model),
            "prediction": self.noising.prediction,
            "preset": self.config.preset,
            **self.describe_inputs(),
        }

    def describe_inputs(self) -> dict[str, str]:
        """Return the models that compute what the adapter takes: image encoder, face model."""
        source, encoder, takes = (
            self.config.base.image_encoder,
            self.base.image_encoder,
            set(self.config.takes),
        )
        named = {"face_model": self.config.adapter.face_model} if "face_embedding" in takes else {}
        if encoder is None or takes == {"face_embedding"}:
            return named
        name = "mini" if source == "known" else strip_folders(source)
        return {"image_encoder": name, "encoder": encoder.name, **named}


def shuffle_references(batches: Sequence[PromptBatch]) -> list[PromptBatch]:
    """Give each sample the reference of the one before it, across batches too."""

    def shift_inputs(before: PromptBatch, batch: PromptBatch) -> dict[str, Tensor]:
        return {
            name: torch.cat([before.inputs[name][-1:], value[:-1]]) for name, value in batch.inputs.items()
        }

    befores = [batches[-1], *batches[:-1]]
    return [
        batch._replace(inputs=shift_inputs(before, batch))
        for before, batch in zip(befores, batches, strict=True)
    ]
