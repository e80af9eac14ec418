"""What a base reads of a prompt: words that it drops, weights of words, and skipped text layers."""

import importlib.util
import inspect
import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.errors import ConfigError, MissingExtra
from imprompt.generation.settings import Settings

_WORDS_SHOWN = 60
"""The most characters of the words that a warning repeats."""


def build_prompt_arguments(pipe: Any, settings: Settings) -> dict[str, Any]:
    """Return the arguments of a pipeline call that carry the texts.

    Raises:
        ConfigError: `clip_skip` or `prompt_weighting` on a base that cannot honor it
        MissingExtra: weights need compel
    """
    if settings.clip_skip is not None:
        _check_clip_skip(pipe, settings.clip_skip)
    if settings.prompt_weighting:
        return encode_weighted_prompts(pipe, settings)
    texts = {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt}
    for text in texts.values():
        warn_of_dropped_words(pipe, text)
    if settings.clip_skip is None:
        return texts
    if hasattr(pipe, "text_encoder_2"):
        # SDXL is trained on the last layer but one, from which diffusers counts.
        return texts | {"clip_skip": settings.clip_skip - 2 or None}
    return {
        f"{name}_embeds": encode_text(pipe, text, layer=settings.clip_skip) for name, text in texts.items()
    }


def encode_text(pipe: Any, text: str, *, layer: int) -> Float[Tensor, "1 tokens context_dim"]:
    """Return the output of a layer of the base's text encoder, after its final norm.

    diffusers' own `clip_skip` asks for a part of the text encoder that transformers 5 no longer has
    (`StableDiffusionPipeline.encode_prompt` of diffusers 0.42).

    Args:
        pipe: a pipeline with one CLIP text encoder
        text: the text
        layer: counted from the end; 1 is the last one
    """
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    expanded = pipe.maybe_convert_prompt(text, tokenizer)
    tokens = tokenizer(expanded, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = encoder(tokens.to(encoder.device), output_hidden_states=True).hidden_states[-layer]
        return getattr(encoder, "text_model", encoder).final_layer_norm(hidden)


def _check_clip_skip(pipe: Any, clip_skip: int) -> None:
    if "clip_skip" not in inspect.signature(type(pipe).__call__).parameters:
        raise ConfigError(f"{type(pipe).__name__} takes no clip_skip")
    layers = pipe.text_encoder.config.num_hidden_layers
    if clip_skip > layers:
        raise ConfigError(f"clip_skip must be at most {layers}, the layers of this text encoder")


def warn_of_dropped_words(pipe: Any, text: str) -> None:
    """Warn of the words at the end of a text that the text encoder does not read."""
    if (warning := find_dropped_words(pipe, text)) is not None:
        warnings.warn(warning, stacklevel=2)


def find_dropped_words(pipe: Any, text: str) -> str | None:
    """Return a sentence about words that the text encoder does not read; None if it reads all."""
    tokenizer = getattr(pipe, "tokenizer", None)
    if not text or tokenizer is None or not hasattr(tokenizer, "decode"):
        return None
    tokens, most = tokenizer(text, truncation=False).input_ids, tokenizer.model_max_length
    if len(tokens) <= most:
        return None
    dropped = tokenizer.decode(tokens[most - 1 : -1]).strip()
    shown = dropped if len(dropped) <= _WORDS_SHOWN else f"{dropped[:_WORDS_SHOWN]}..."
    return (
        f"this base reads {most - 2} tokens of a prompt, and this one has {len(tokens) - 2}: it drops "
        f"{shown!r}; prompt_weighting reads prompts of any length"
    )


def encode_weighted_prompts(pipe: Any, settings: Settings) -> dict[str, Any]:
    """Encode both texts with their weights and at any length, by compel.

    Raises:
        ConfigError: a base whose text compel does not encode, or a text with a wrong syntax
        MissingExtra: compel is not installed
    """
    if importlib.util.find_spec("compel") is None:
        raise MissingExtra("compel", "prompts")
    encoder = _build_weighted_encoder(pipe, settings.clip_skip)
    try:
        encoded = encoder(settings.prompt, negative_prompt=settings.negative_prompt)
    except Exception as error:  # a parser may fail in any way
        raise ConfigError(f"compel cannot read this prompt: {error}") from error
    arguments = {"prompt_embeds": encoded.embeds, "negative_prompt_embeds": encoded.negative_embeds}
    if encoded.pooled_embeds is None:
        return arguments
    return arguments | {
        "pooled_prompt_embeds": encoded.pooled_embeds,
        "negative_pooled_prompt_embeds": encoded.negative_pooled_embeds,
    }


def _build_weighted_encoder(pipe: Any, clip_skip: int | None) -> Any:
    import compel

    is_xl = hasattr(pipe, "text_encoder_2")
    if clip_skip not in (None, 2 if is_xl else 1):
        raise ConfigError(
            f"prompt_weighting reads the base's own text layer, not clip_skip = {clip_skip}; leave one of "
            "them out"
        )
    kind = compel.CompelForSDXL if is_xl else compel.CompelForSD
    return kind(pipe, textual_inversion_manager=compel.DiffusersTextualInversionManager(pipe))
