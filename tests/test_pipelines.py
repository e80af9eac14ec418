"""Every diffusers pipeline with a U-Net, one law after another; docs/pipelines.md is made of what passes.

Tolerance: 1e-5 absolute, float32, on the latents of all samples and frames, which reach ±10; "bit for bit" is
no tolerance. "By hand" is the paper's equation, row by row (by_hand.py), so what diffusers lacks, or gets
wrong, is checked too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import tiny
from by_hand import Term
from imprompt.errors import AttachmentError
from imprompt.reference import Reference
from matrix import cells
from scenes import SCALE, TOLERANCE, assert_same, scene
from test_parity import for_diffusers
from tiny_pipelines import Case

# diffusers announces what it will require of lists of pictures some day.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@cells("theirs")
def test_the_base_adapter_makes_what_diffusers_makes(case: Case) -> None:
    it = scene(case)
    given: Any = {"ip_adapter_image": it.picture}
    if case.theirs == "embeddings":
        guided = "negative" in case.guided
        given = {"ip_adapter_image_embeds": for_diffusers(it.embedding, guided=guided)}
    with it.theirs(SCALE):
        expected = case.latents(it.pipe, **given)
    assert_same(it.ours, expected, it.base)


@cells("hand")
def test_the_base_adapter_makes_what_the_equation_makes(case: Case) -> None:
    it = scene(case)
    assert_same(it.ours, it.by_hand(it.term), it.base)


@cells("itself", only=lambda case: case.tells)
def test_rows_are_laid_out_without_being_told(case: Case) -> None:
    it = scene(case)
    ours = it.ours  # attaches and detaches by itself
    with it.adapter.attach(it.pipe), it.adapter.references(it.reference):
        assert torch.equal(case.latents(it.pipe), ours)


@cells("itself", only=lambda case: not case.tells, refused=True)
def test_a_pipeline_that_does_not_tell_its_rows_is_refused(
    case: Case, record_property: Callable[[str, object], None]
) -> None:
    it = scene(case)
    sentence = r"does not tell how .*; give .*branches="
    with (
        it.adapter.attach(it.pipe),
        it.adapter.references(it.reference),
        pytest.raises(AttachmentError, match=sentence) as refused,
    ):
        case.latents(it.pipe)
    record_property("refusal", str(refused.value))


@cells("zero", "detached")
def test_scale_zero_and_a_detached_pipeline_are_the_base_bit_for_bit(case: Case) -> None:
    it = scene(case)
    processors = dict(it.pipe.unet.attn_processors)
    assert torch.equal(it.draw_attached(Reference(it.embedding, scale=0.0)), it.base)
    assert not torch.equal(it.ours, it.base)
    assert it.pipe.unet.attn_processors == processors
    assert torch.equal(case.latents(it.pipe), it.base)


@cells("unguided")
def test_without_guidance_every_row_is_positive(case: Case) -> None:
    it = scene(case)
    assert case.unguided is not None
    expected = it.by_hand(it.term, branches=[case.unguided], guidance_scale=1.0)
    assert_same(it.draw_attached(it.reference, unguided=True), expected, it.base)


@cells("prompts")
def test_several_prompts_with_a_reference_each_equal_each_alone(case: Case) -> None:
    it = scene(case)
    prompts = ["a cat", "a red dog"]
    references = [Reference(tiny.embedding(1, seed=i), scale=0.4 + 0.5 * i) for i in range(2)]
    together = it.draw_attached(references, prompts=prompts)
    for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True)):
        alone = it.draw_attached(reference, prompts=[prompt], seeds=[i])
        assert_same(together[i : i + 1], alone, it.base)


@cells("each")
def test_all_pictures_of_a_prompt_have_its_reference(case: Case) -> None:
    it = scene(case)
    embeddings = [tiny.embedding(1, seed=i) for i in range(2)]
    asked: Any = {"prompts": ["a cat", "a red dog"], "each": 2}
    ours = it.draw_attached([Reference(one, scale=SCALE) for one in embeddings], **asked)
    assert_same(ours, it.by_hand(Term(it.adapter, torch.stack(embeddings), SCALE), **asked), it.base)


@cells("interval")
def test_guidance_may_stop_part_way(case: Case) -> None:
    """As `SDCFGCutoffCallback` does; with diffusers' adapter the positive rows then get the zero image."""
    it = scene(case)
    stop: Any = {"callback_on_step_end": stop_guidance(case)}
    stop |= {"callback_on_step_end_tensor_inputs": list(case.halved)}
    ours = it.draw_attached(it.reference, **stop)
    assert_same(ours, it.by_hand(it.term, branches=[case.guided, ("positive",)], **stop), it.base)
    wrong = it.by_hand(it.term, branches=[case.guided, ("negative",)], **stop)
    assert (ours - wrong).abs().max() > 10 * TOLERANCE


def stop_guidance(case: Case) -> Callable[..., dict[str, Any]]:
    """A callback that after the first step keeps the positive rows alone."""

    def cut(tensors: Any) -> Any:
        if isinstance(tensors, list):
            return [cut(tensor) for tensor in tensors]
        return tensors.chunk(len(case.guided))[case.guided.index("positive")]

    def stop(pipe: Any, step: int, _: object, tensors: dict[str, Any]) -> dict[str, Any]:
        if step > 0:
            return tensors
        pipe._guidance_scale = 0.0
        return {name: cut(tensor) for name, tensor in tensors.items()}

    return stop


@cells("lora")
def test_a_users_lora_acts_and_stays_as_it_is(case: Case) -> None:
    it = scene(case)
    base = it.base
    with lora(it.pipe.unet) as weights:
        before = {name: weight.clone() for name, weight in weights.items()}
        styled = case.latents(it.pipe)
        assert not torch.allclose(styled, base, atol=1000 * TOLERANCE)
        assert_same(it.draw_attached(it.reference), it.by_hand(it.term), styled)
        assert torch.equal(case.latents(it.pipe), styled)
        assert it.pipe.unet.active_adapters() == ["style"]
        assert all(torch.equal(before[name], weight) for name, weight in weights.items())


@contextmanager
def lora(unet: Any) -> Iterator[dict[str, Tensor]]:
    """A user's LoRA on the attention layers, all weights random; gives these."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = ["to_q", "to_k", "to_v", "to_out.0"]
        unet.add_adapter(LoraConfig(r=2, target_modules=layers), adapter_name="style")
        weights = {name: weight for name, weight in unet.named_parameters() if "lora" in name}
        for weight in weights.values():
            nn.init.normal_(weight, std=0.1)
    try:
        yield {name: weight.detach() for name, weight in weights.items()}
    finally:
        unet.unload_lora()
