"""Text embeddings and image tokens on both branches of classifier-free guidance."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.embeddings import ImageEmbeddings
from imprompt.errors import InvalidReference
from imprompt.injection.base import Inputs

POSITIVE, NEGATIVE = "prompt_embeds", "negative_prompt_embeds"

_EMBEDS = (POSITIVE, NEGATIVE, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
"""What `encode_prompt` of diffusers' pipelines gives, in its order."""


def text_embeddings(pipe: Any, call: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the pipeline makes of the call's prompts, under the names by which it takes that."""
    prompts = list(call["prompt"])
    texts = pipe.encode_prompt(
        prompt=prompts,
        negative_prompt=call.get("negative_prompt") or [""] * len(prompts),
        device=pipe.device,
        num_images_per_prompt=1,
        do_classifier_free_guidance=True,
    )
    return dict(zip(_EMBEDS, texts, strict=False))


def without_prompts(call: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of a call."""
    return {key: value for key, value in call.items() if key not in ("prompt", "negative_prompt")}


def check_counts(images: Sequence[ImageEmbeddings], call: Mapping[str, Any]) -> None:
    """Each prompt has its image prompt.

    Raises:
        InvalidReference: it has not, or one prompt is to make several pictures
    """
    if len(images) != len(call["prompt"]) or call.get("num_images_per_prompt", 1) != 1:
        raise InvalidReference(
            f"{len(images)} image prompts need as many prompts, one picture each; there are "
            f"{len(call['prompt'])} prompts, with {call.get('num_images_per_prompt', 1)} pictures each"
        )


def both_sides(
    images: Sequence[ImageEmbeddings], like: Tensor
) -> tuple[Float[Tensor, "batch embedding_dim"], Float[Tensor, "batch embedding_dim"]]:
    """The image embeddings, and beside them those of no image, in the format and place of `like`."""
    return stacked([one.inputs for one in images], like), stacked([one.blank for one in images], like)


def stacked(sides: Sequence[Inputs], like: Tensor) -> Float[Tensor, "batch embedding_dim"]:
    """One image embedding of each side, the first of several."""
    each = [side["image_embedding"] for side in sides]
    return torch.stack([one.to(like).reshape(-1, one.shape[-1])[0] for one in each])
