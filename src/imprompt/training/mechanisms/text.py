"""Text embeddings on both branches of classifier-free guidance."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

POSITIVE, NEGATIVE = "prompt_embeds", "negative_prompt_embeds"

_EMBEDS = (POSITIVE, NEGATIVE, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` of diffusers' pipelines gives, in its order."""


def text_embeddings(pipe: Any, call: Mapping[str, Any]) -> dict[str, Tensor]:
    """Encode the prompts of a call; the keys are the pipeline's argument names."""
    prompts = list(call["prompt"])
    texts = pipe.encode_prompt(
        prompt=prompts,
        negative_prompt=call.get("negative_prompt") or [""] * len(prompts),
        device=pipe.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    return dict(zip(_EMBEDS, texts, strict=False))


def drop_prompts(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments without its prompts."""
    return {key: value for key, value in call.items() if key not in ("prompt", "negative_prompt")}
