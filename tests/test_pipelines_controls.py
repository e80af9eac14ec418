"""In every pipeline: where, when and in which layers references act, several of them, and what runs them."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from torch import Tensor

import tiny
from by_hand import Term
from imprompt.reference import Reference
from matrix import cells
from scenes import SCALE, assert_same, scene
from tiny_bases import numbers
from tiny_pipelines import SIZE, Case

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

STEPS, LAYERS = [0.3, 1.2], {"down": 0.5, "mid": 1.3}
MASK = numbers(SIZE, SIZE).sigmoid()


def mean_over_blocks(queries: int) -> Tensor:
    """The mask on a layer's grid, each position the mean of its part of the picture."""
    side = round(queries**0.5)
    block = SIZE // side
    return MASK.reshape(side, block, side, block).mean((1, 3)).flatten()


@cells("references", "mask", "steps", "layers")
def test_two_references_act_each_where_when_and_in_the_layers_it_should(case: Case) -> None:
    """All in one run, one of them everywhere: leaving out any of the controls makes another picture."""
    it, other = scene(case), tiny.embedding(2, seed=5)
    here = Reference(it.embedding, scale=1.0, mask=MASK, step_weights=STEPS, layers=dict(LAYERS))
    ours = it.draw_attached(here, Reference(other, scale=SCALE))
    expected = it.by_hand(
        Term(
            it.adapter,
            it.embedding[None],
            at=lambda step: STEPS[step],
            on=lambda name: LAYERS.get(name.split("_")[0], 0.0),
            where=mean_over_blocks,
        ),
        Term(it.adapter, other[None], SCALE),
    )
    assert_same(ours, expected, it.base)


@cells("adapters")
def test_two_adapters_add_up(case: Case) -> None:
    it, embedding = scene(case), tiny.embedding(1, seed=6)
    other = tiny.adapter(it.pipe.unet, seed=9)
    branches = None if case.tells else case.guided
    with other.attach(it.pipe), other.references(Reference(embedding, scale=0.5), branches=branches):
        ours = it.draw_attached(it.reference)
    assert_same(ours, it.by_hand(it.term, Term(other, embedding[None], 0.5)), it.base)


@cells("file")
def test_saved_embeddings_stand_for_the_picture(case: Case, tmp_path: Path) -> None:
    it = scene(case)
    it.adapter.encode(Reference(it.picture)).save(tmp_path / "picture.safetensors")
    ours = it.draw_attached(Reference(tmp_path / "picture.safetensors", scale=SCALE))
    assert torch.equal(ours, it.ours)


@cells("sliced")
def test_attention_slicing_changes_nothing(case: Case) -> None:
    it = scene(case)
    it.pipe.enable_attention_slicing(1)
    try:
        kinds = {type(processor).__name__ for processor in it.pipe.unet.attn_processors.values()}
        assert kinds == {"SlicedAttnProcessor"}
        assert_same(it.draw_attached(it.reference), it.ours, it.base)
        processors = it.pipe.unet.attn_processors.values()
        assert {type(processor).__name__ for processor in processors} == kinds
    finally:
        it.pipe.disable_attention_slicing()


@pytest.mark.slow
@cells("compiled")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiling_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    it = scene(case)
    expected = it.ours
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(it.pipe, "unet", torch.compile(it.pipe.unet, backend="eager", fullgraph=True))
    torch._dynamo.reset()
    assert_same(it.draw_attached(it.reference), expected, it.base)
    torch._dynamo.reset()
