"""Which row of the prepared embeddings belongs to which row of the U-Net's batch.

A pipeline repeats the embeddings for each picture that it makes, after the negative ones with guidance:
rows = branches × embeddings × pictures. Usually there is one embedding for all pictures, and the rows are the
batch's. Where there is one for each prompt, diffusers mixes them; here each prompt gets its own.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from imprompt.attention.diffusers_internals import Branches, PipelineCall, list_branches
from imprompt.errors import AmbiguousBatch


class RowLayout(NamedTuple):
    """How a known pipeline stacks its batch.

    Args:
        prepared: the branches of guidance when the embeddings were prepared
        current: the branches now; a callback may have switched guidance off
        samples: the number of pictures (or videos)
        prompts: the number of prompts
    """

    prepared: Branches
    current: Branches
    samples: int
    prompts: int


def read_layout(call: PipelineCall | None, prepared: Branches | None) -> RowLayout | None:
    """Read how a running pipeline stacks its batch; None if it cannot be known.

    Args:
        call: the call of the pipeline
        prepared: the branches when the embeddings were prepared; None: as now
    """
    if call is None or call.samples is None or call.prompts is None:
        return None
    current = list_branches(call.pipeline)
    return RowLayout(prepared or current, current, call.samples, call.prompts)


def fit_embeddings(
    embeddings: Float[Tensor, "rows ..."], batch: int, layout: RowLayout | None
) -> Float[Tensor, "batch ..."]:
    """Return a row of embeddings for each row of the batch.

    Args:
        embeddings: as the pipeline has prepared them
        batch: the number of rows of the U-Net's batch; a video counts as one
        layout: how the batch is stacked; None: the rows must be the batch's

    Raises:
        AmbiguousBatch: the rows fit this batch in no way
    """
    rows = len(embeddings)
    if rows == batch:
        return embeddings
    if layout is None or rows % len(layout.prepared):
        raise AmbiguousBatch(_describe_misfit(rows, batch, layout))
    branches = embeddings.unflatten(0, (len(layout.prepared), -1))
    each = branches.shape[1] / layout.samples
    if each == layout.prompts:
        _check_no_negative(branches, layout)
        # The pipeline has repeated all of them for every picture; the first of each are the user's.
        own = branches[:, : layout.prompts]
        branches = own.repeat_interleave(layout.samples // layout.prompts, 1)
    elif each != 1:
        raise AmbiguousBatch(_describe_misfit(rows, batch, layout))
    return torch.cat([branches[layout.prepared.index(branch)] for branch in layout.current])


def fit_masks(
    masks: Float[Tensor, "rows images height width"], batch: int, layout: RowLayout | None
) -> Float[Tensor, "batch images height width"]:
    """Return masks for each row of the batch: one for all, one for each prompt, or one for each row.

    Raises:
        AmbiguousBatch: another number of masks
    """
    rows = len(masks)
    if rows in (1, batch):
        return masks.expand(batch, -1, -1, -1)
    if layout is None or rows not in (layout.prompts, layout.samples):
        raise AmbiguousBatch(
            f"ip_adapter_masks have {rows} rows for a batch of {batch}; give one, or one for each prompt"
        )
    return masks.repeat_interleave(layout.samples // rows, 0).repeat(len(layout.current), 1, 1, 1)


def _check_no_negative(branches: Tensor, layout: RowLayout) -> None:
    """Refuse "no image" among the pictures, which is there for guidance."""
    is_zero = (branches == 0).flatten(2).all(-1)
    if "negative" not in layout.prepared and bool(is_zero.any()):
        raise AmbiguousBatch(
            "ip_adapter_image_embeds contain a negative row of zeros, but guidance is off; leave it out, or "
            "set guidance_scale above 1"
        )


def _describe_misfit(rows: int, batch: int, layout: RowLayout | None) -> str:
    if layout is None:
        return (
            f"the image embeddings have {rows} rows, but the U-Net is called with {batch}, by a pipeline "
            "that imprompt does not know; give a row of embeddings for each of them"
        )
    each = rows / len(layout.prepared) / layout.samples
    number = "one row" if layout.prompts == 1 else f"one row, or {layout.prompts}, one for each prompt"
    is_guided = "negative" in layout.prepared
    return f"ip_adapter_image_embeds have {each:g} rows for {layout.prompts} prompts; give {number}" + (
        ", and as many negative ones before them" if is_guided else ", and no negative: guidance is off"
    )
