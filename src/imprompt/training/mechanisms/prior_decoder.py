"""Prior and decoder, as Kandinsky 2.1 has them: text → image embedding → picture.

prior:    ê = P(text), a diffusion of image embeddings
decoder:  Attn(Q, [K, K_i], [V, V_i]) and time embedding + W e, with e = ê, or the image prompt's own
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.generation.pipeline_call import call_pipeline
from imprompt.inputs.embeddings import ImageEmbeddings
from imprompt.training.denoising import predict
from imprompt.training.mechanisms.base import Denoise, Inputs
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism
from imprompt.training.mechanisms.projection import PREFIX
from imprompt.training.mechanisms.text import NEGATIVE, POSITIVE, drop_prompts, text_embeddings
from imprompt.training.mechanisms.unclip import TimeProjection, add_to_time

PRIOR_LAYERS, PRIOR_HEAD_WIDTH, PRIOR_STEPS = 4, 64, 25
PRIOR_PREFIX, TIME_PREFIX = "prior.", "time_proj."


class PriorDecoderMechanism(FineTunedMechanism):
    """A prior from text to image embeddings, and a decoder that reads text and image embedding.

    This follows Kandinsky 2.1 (kandinsky-community/kandinsky-2-1) with three differences. Its decoder was
    trained from scratch; here it is the fine-tuned base, as in the other mechanisms that train the U-Net.
    Prior and decoder are trained together here, each by its own loss. And its image embeddings have a length
    by which the noise of its prior is scaled; here the prior makes a direction, and the image prompt gives
    the length.

    Args:
        projection: the modules "tokens", "time" and "prior", see `build_prior_decoder`
        pipe: the base's pipeline; its U-Net is made trainable, in place
    """

    name = "prior-decoder"
    projection: Any

    def __init__(self, projection: nn.Module, pipe: Any) -> None:
        super().__init__(projection, pipe)
        self.schedule = DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing="trailing",
        )

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Tokens, time projection, prior and U-Net."""
        own = {PREFIX: "tokens", TIME_PREFIX: "time", PRIOR_PREFIX: "prior"}
        return {**super().parts, **{prefix: self.projection[name] for prefix, name in own.items()}}

    @contextlib.contextmanager
    def condition_on(self, inputs: Inputs) -> Iterator[Denoise]:
        """Append the image tokens to the text, and add the image to the time embedding."""
        embeddings, parts = inputs["image_embedding"][:, 0], self.projection
        tokens = parts["tokens"](embeddings)

        def denoise(noisy: Tensor, times: Tensor, text: Tensor, added: Any) -> Tensor:
            return predict(self.unet, noisy, times, torch.cat([text, tokens.to(text)], dim=1), added)

        with add_to_time(self.unet, parts["time"](embeddings)):
            yield denoise

    def more_loss(
        self,
        inputs: Inputs,
        text: Float[Tensor, "batch length width"],
        uniform: Float[Tensor, " batch"],
        noise: Float[Tensor, "batch ..."],
    ) -> Float[Tensor, ""]:
        """Return the prior's loss, ‖e - P(e_t, t, text)‖², over the samples whose image is not dropped."""
        embeddings = inputs["image_embedding"][:, 0]
        shown = embeddings.any(dim=1)
        directions = to_directions(embeddings)
        times = (uniform * self.schedule.config["num_train_timesteps"]).long()
        noisy: Any = self.schedule.add_noise(directions, noise.flatten(1)[:, : directions.shape[1]], times)  # pyright: ignore[reportArgumentType]
        errors = F.mse_loss(self._predict(noisy, times, text), directions, reduction="none").mean(dim=1)
        return (errors * shown).sum() / shown.sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self, pipe: Any, images: Sequence[ImageEmbeddings], scale: float | int, call: Mapping[str, Any]
    ) -> list[Image.Image]:
        """Generate from ê + scale (e - ê): 1 is the image prompt, 0 what the prior makes of the text.

        Without a text there is no ê, and the image prompt alone is decoded, whatever the scale.
        """
        positive, negative = self.stack_branches(pipe, images, call)
        embeds = text_embeddings(pipe, call)
        has_text = torch.tensor([bool(prompt) for prompt in call["prompt"]], device=positive.device)
        if scale != 1 and has_text.any():
            imagined = self._imagine(embeds, positive, call)
            positive = torch.where(has_text[:, None], imagined.lerp(positive, float(scale)), positive)
        parts = self.projection
        for name, side in ((POSITIVE, positive), (NEGATIVE, negative)):
            embeds[name] = torch.cat([embeds[name], parts["tokens"](side).to(embeds[name])], dim=1)
        with add_to_time(self.unet, parts["time"](positive), parts["time"](negative)):
            return call_pipeline(pipe, {**drop_prompts(call), **embeds})

    def _imagine(
        self, embeds: Mapping[str, Tensor], like: Float[Tensor, "batch d"], call: Mapping[str, Any]
    ) -> Float[Tensor, "batch d"]:
        """Sample image embeddings of texts, with classifier-free guidance, each as long as in `like`."""
        generators = call["generator"]
        state = torch.stack([torch.randn(like.shape[1], generator=_copy(one)) for one in generators]).to(like)
        weight = call.get("guidance_scale", 1.0)
        self.schedule.set_timesteps(PRIOR_STEPS)
        for time in self.schedule.timesteps:
            sides = [self._predict(state, time, embeds[name].to(like)) for name in (NEGATIVE, POSITIVE)]
            guided = sides[0].lerp(sides[1], float(weight))
            state = self.schedule.step(to_directions(guided), int(time), state).prev_sample  # pyright: ignore[reportAttributeAccessIssue]
        return to_directions(state) * like.norm(dim=1, keepdim=True) / math.sqrt(like.shape[1])

    def _predict(self, noisy: Tensor, times: Tensor, text: Tensor) -> Tensor:
        """Predict the direction; the last state of a causal text encoder has read the whole text."""
        prior, text = self.projection["prior"], text.float()
        return prior(noisy, times, text[:, -1], text).predicted_image_embedding


def to_directions(embeddings: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
    """Scale embeddings to the length √d, so that their numbers vary as those of noise do."""
    return F.normalize(embeddings, dim=1) * math.sqrt(embeddings.shape[1])


def build_prior_decoder(
    tokens: nn.Module, time: TimeProjection, pipe: Any, *, seed: int = 0
) -> nn.ModuleDict:
    """Build the trained modules beside the U-Net: a prior as wide as the text.

    Args:
        tokens: image embedding → image tokens
        time: image embedding → what is added to the time embedding
        pipe: the base's pipeline
        seed: of the prior's initial weights
    """
    width, length = int(pipe.unet.config.cross_attention_dim), int(pipe.tokenizer.model_max_length)
    heads = max(1, width // PRIOR_HEAD_WIDTH)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = PriorTransformer(
            num_attention_heads=heads,
            attention_head_dim=width // heads,
            num_layers=PRIOR_LAYERS,
            embedding_dim=time.proj.in_features,
            embedding_proj_dim=width,
            num_embeddings=length,
            encoder_hid_proj_type=None,  # the text is as wide as the prior
        )
    del prior.clip_mean, prior.clip_std  # of embeddings in their own scale
    return nn.ModuleDict({"tokens": tokens, "time": time, "prior": prior})


def _copy(generator: torch.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(generator.initial_seed())
