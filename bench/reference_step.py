"""The official IP-Adapter script's training step, written anew, for `training_step.py` to measure against.

Read in tencent-ailab/IP-Adapter's tutorial_train.py and ip_adapter/attention_processor.py: pictures decoded
and put through autoencoder, image encoder and text encoder at every step; a float32 U-Net, under autocast
where computing is narrower; image tokens behind the text's and cut off again in every layer, K' and V'
computed there, the text's keys in the graph, an attention map that nobody asked for; AdamW; the loss
gathered, read and printed.
"""

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.adapter.module import ImagePromptAdapter
from imprompt.attention.terms import attend, merge_heads, split_heads
from imprompt.training.batches import Draws
from imprompt.training.config import TrainingConfig
from imprompt.training.frozen_base import FrozenBase
from imprompt.training.targets import make_target


class ReferenceAttention(nn.Module):
    """A cross-attention layer as the official script trains it."""

    def __init__(self, key: Tensor, value: Tensor, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.key, self.value = (nn.Parameter(weight.detach().clone()) for weight in (key, value))
        self.attention_map: Tensor | None = None

    def forward(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        text, image = encoder_hidden_states.tensor_split([-self.tokens], dim=1)
        query = split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = (split_heads(linear(text), attn.heads) for linear in (attn.to_k, attn.to_v))
        output = attend(query, key, value, attention_mask)
        key, value = (split_heads(F.linear(image, w), attn.heads) for w in (self.key, self.value))
        with torch.no_grad():  # kept for looking at, though it is none: the softmax comes too early
            self.attention_map = query @ key.transpose(-2, -1).softmax(dim=-1)
        output = merge_heads(output + 1.0 * attend(query, key, value))
        return attn.to_out[1](attn.to_out[0](output))


class Reference:
    """The official script's step, but for two things: it is told its noise, and the base's own target.

    (The script predicts ε whatever the base does.) Decoding and cutting of pictures are ours, which give the
    script's pixels.
    """

    def __init__(
        self, base: FrozenBase, adapter: ImagePromptAdapter, pictures: Sequence[Path], config: TrainingConfig
    ) -> None:
        self.base, self.pictures, self.config = base, pictures, config
        self.unet = base.unet if base.dtype == torch.float32 else copy.deepcopy(base.unet).float()
        self.projection = copy.deepcopy(adapter.projection)
        names = [name.removesuffix(".processor") for name in self.unet.attn_processors]
        self.layers = {
            names[number]: ReferenceAttention(
                adapter.key_value(number).to_key.weight,
                adapter.key_value(number).to_value.weight,
                adapter.projection.tokens,
            )
            for number in adapter.shapes
        }
        self.trained = {
            **{f"projection.{name}": weight for name, weight in self.projection.named_parameters()},
            **{f"layers.{n}.to_key.weight": self.layers[names[n]].key for n in adapter.shapes},
            **{f"layers.{n}.to_value.weight": self.layers[names[n]].value for n in adapter.shapes},
        }
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=1e-4, weight_decay=0.01)
        self.printed = io.StringIO()

    def step(self, rows: Sequence[int], draws: Draws) -> None:
        """From files to new weights."""
        loss = self.differentiate(rows, draws)
        gathered = loss.detach().repeat(len(rows)).mean().item()
        self.optimizer.step()
        self.optimizer.zero_grad()
        print(f"step loss: {gathered}", file=self.printed)

    def differentiate(self, rows: Sequence[int], draws: Draws) -> Tensor:
        """Loss, and its gradients."""
        draws = Draws(*(draw.to(self.base.device) for draw in draws))
        latents, embedding, text = self.encode(rows, draws)
        scheduler = self.base.scheduler
        times = (draws.uniform * scheduler.config.num_train_timesteps).long()
        noisy = scheduler.add_noise(latents, draws.noise, times)
        with self.in_place(), self.autocast():
            context = torch.cat([text, self.projection(embedding)], dim=1)
            predicted = self.unet(noisy, times, context).sample
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, draws.noise, times) if is_velocity else draws.noise
        loss = F.mse_loss(predicted.float(), target.float())
        loss.backward()
        return loss

    @torch.no_grad()
    def encode(self, rows: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, image embedding and text, dropped where they are to be."""
        pipe, encoder, there = self.base.pipe, self.base.image_encoder, self.base.device
        assert encoder is not None
        pictures = [Image.open(self.pictures[row]).convert("RGB") for row in rows]
        captions = [self.pictures[row].with_suffix(".txt").read_text() for row in rows]
        captions = ["" if drop else caption for drop, caption in zip(draws.no_text, captions, strict=True)]
        pixels = torch.stack([make_target(picture, self.config.data).pixels for picture in pictures])
        found = pipe.vae.encode(pixels.to(there, pipe.vae.dtype)).latent_dist
        latents = (found.mean + found.std * draws.latent_noise) * pipe.vae.config.scaling_factor
        embedding = encoder.encode(encoder.pixels(pictures))
        embedding = torch.where(draws.no_image[:, None], torch.zeros_like(embedding), embedding)
        length = pipe.tokenizer.model_max_length
        tokens = pipe.tokenizer(
            captions, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
        )
        return latents, embedding, pipe.text_encoder(tokens.input_ids.to(there))[0]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Its layers in the U-Net's."""
        attentions = {name: self.unet.get_submodule(name) for name in self.layers}
        before: dict[str, Any] = {name: attn.processor for name, attn in attentions.items()}
        try:
            for name, attn in attentions.items():
                attn.set_processor(self.layers[name])  # pyright: ignore[reportCallIssue]
            yield
        finally:
            for name, attn in attentions.items():
                attn.set_processor(before[name])  # pyright: ignore[reportCallIssue]

    def autocast(self) -> Any:
        narrow = self.base.dtype != torch.float32
        return torch.autocast(self.base.device.type, self.base.dtype, enabled=narrow)

    def checkpoint_bytes(self) -> int:
        """What `accelerator.save_state` writes: the U-Net, what is trained, and AdamW's two moments."""
        trained = sum(weight.numel() for weight in self.trained.values())
        return 4 * (sum(weight.numel() for weight in self.unet.parameters()) + 3 * trained)
