"""One decoupled cross-attention layer: its arithmetic, and what it remembers of the text."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from accelerate import cpu_offload
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from imprompt.attention.processor import DecoupledAttention
from imprompt.attention.terms import ImageTerm, attend, merge_heads, split_heads
from imprompt.errors import AmbiguousBatch

QUERY_DIM, CONTEXT_DIM, HEADS, HEAD_DIM = 11, 13, 3, 5
INNER_DIM = HEADS * HEAD_DIM


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        yield


@pytest.fixture
def attn(seed: None) -> Attention:
    return Attention(QUERY_DIM, CONTEXT_DIM, heads=HEADS, dim_head=HEAD_DIM).eval()


@pytest.fixture
def hidden_states(seed: None) -> Tensor:
    return torch.randn(2, 7, QUERY_DIM)


@pytest.fixture
def text(seed: None) -> Tensor:
    return torch.randn(2, 17, CONTEXT_DIM)


def image(batch: int = 2, tokens: int = 4) -> ImageTerm:
    return ImageTerm(*(split_heads(torch.randn(batch, tokens, INNER_DIM), HEADS) for _ in range(2)))


def decouple(attn: Attention, *images: ImageTerm) -> DecoupledAttention:
    processor = DecoupledAttention(AttnProcessor2_0())
    processor.set_terms("test", images)
    attn.set_processor(processor)  # pyright: ignore[reportArgumentType]
    return processor


@contextmanager
def count_calls(*modules: nn.Module) -> Iterator[list[int]]:
    """Count calls, without a hook that would show."""
    calls = [0]
    originals = [type(module) for module in modules]
    assert set(originals) == {nn.Linear}
    forward = nn.Linear.forward

    def counting(self: nn.Linear, x: Tensor) -> Tensor:
        calls[0] += any(self is module for module in modules)
        return forward(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", counting)
        yield calls


# What it computes


def test_attend_is_softmax_attention_by_hand() -> None:
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    expected = torch.softmax(query @ key.mT / 4**0.5, dim=-1) @ value
    torch.testing.assert_close(attend(query, key, value), expected)


def test_splitting_heads_keeps_each_heads_columns_together() -> None:
    x = torch.randn(2, 7, INNER_DIM)
    assert torch.equal(split_heads(x, HEADS)[:, 1], x[:, :, HEAD_DIM : 2 * HEAD_DIM])
    assert torch.equal(merge_heads(split_heads(x, HEADS)), x)


def test_without_images_it_equals_diffusers_to_the_last_bit(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    expected = attn(hidden_states, text)
    decouple(attn)
    assert torch.equal(attn(hidden_states, text), expected)


@pytest.mark.parametrize("keep", [5, 17])
def test_a_text_mask_acts_as_in_diffusers(
    attn: Attention, hidden_states: Tensor, text: Tensor, keep: int
) -> None:
    mask = torch.zeros(2, 1, 17)
    mask[..., keep:] = -10000.0
    expected = attn(hidden_states, text, attention_mask=mask)
    decouple(attn)
    assert torch.equal(attn(hidden_states, text, attention_mask=mask), expected)


def test_the_image_attention_is_added_before_the_output_layer(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    one, two = image(tokens=4), image(tokens=9)
    base = attn(hidden_states, text)
    query = split_heads(attn.to_q(hidden_states), HEADS)
    sums = attend(query, *one) + attend(query, *two)
    expected = base + merge_heads(sums) @ attn.to_out[0].weight.T  # pyright: ignore
    decouple(attn, one, two)
    torch.testing.assert_close(attn(hidden_states, text), expected)


def test_images_of_another_type_are_brought_to_the_querys(attn: Attention) -> None:
    attn.bfloat16()
    hidden_states, text = torch.randn(2, 7, QUERY_DIM).bfloat16(), torch.randn(2, 17, CONTEXT_DIM).bfloat16()
    decouple(attn, image())
    assert attn(hidden_states, text).dtype == torch.bfloat16


@pytest.mark.parametrize("batch", [1, 3])
def test_images_for_another_batch_are_refused_rather_than_broadcast(
    attn: Attention, hidden_states: Tensor, text: Tensor, batch: int
) -> None:
    decouple(attn, image(batch=batch))
    with pytest.raises(AmbiguousBatch, match=f"2 samples, but the image prompts are for {batch}"):
        attn(hidden_states, text)


# What it remembers


def test_the_texts_key_and_value_are_computed_once(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    decouple(attn, image())
    with count_calls(attn.to_k, attn.to_v) as calls:  # pyright: ignore
        first, second = attn(hidden_states, text), attn(hidden_states, text)
    assert calls == [2]
    assert torch.equal(first, second)


def test_another_text_is_not_taken_for_the_one_before(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    decouple(attn, image())
    first = attn(hidden_states, text)
    assert not torch.equal(attn(hidden_states, text + 1), first)
    assert torch.equal(attn(hidden_states, text.clone()), first)


def test_a_text_at_the_address_of_a_freed_one_is_not_taken_for_it(
    attn: Attention, hidden_states: Tensor
) -> None:
    processor = decouple(attn, image())
    for seed in range(20):
        text = torch.full((2, 17, CONTEXT_DIM), float(seed))
        remembered = attn(hidden_states, text)
        processor.state.text = None
        assert torch.equal(remembered, attn(hidden_states, text))
        del text


@pytest.mark.parametrize("what", ["text", "weight", "bias", "weight moved", "view"])
def test_writing_to_a_tensor_makes_it_compute_again(
    attn: Attention, hidden_states: Tensor, text: Tensor, what: str
) -> None:
    attn = Attention(QUERY_DIM, CONTEXT_DIM, heads=HEADS, dim_head=HEAD_DIM, bias=True).eval()
    processor = decouple(attn, image())
    before = attn(hidden_states, text)
    assert attn.to_v is not None
    if what == "text":
        text.mul_(2)
    elif what == "view":
        text[0].view(-1).add_(1)
    elif what == "weight":
        attn.to_v.weight.mul_(2)
    elif what == "bias":
        attn.to_v.bias.add_(1)
    else:
        attn.to_v.weight.data = attn.to_v.weight.data * 2
    after = attn(hidden_states, text)
    processor.state.text = None
    assert not torch.equal(after, before)
    assert torch.equal(after, attn(hidden_states, text))


def test_nothing_is_remembered_without_images_or_afterwards(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    processor = decouple(attn)
    attn(hidden_states, text)
    assert processor.state.text is None
    processor.set_terms("test", (image(),))
    attn(hidden_states, text)
    assert processor.state.text is not None
    processor.set_terms("test", ())
    assert processor.state.text is None


def test_nothing_is_remembered_where_gradients_flow(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    processor = decouple(attn, image())
    with torch.enable_grad():
        attn(hidden_states, text).sum().backward()
    assert processor.state.text is None
    assert attn.to_k is not None
    assert attn.to_k.weight.grad is not None


def test_inference_tensors_are_computed_each_time(attn: Attention) -> None:
    with torch.inference_mode():
        hidden_states, text = torch.randn(2, 7, QUERY_DIM), torch.randn(2, 17, CONTEXT_DIM)
        processor = decouple(attn, image())
        first = attn(hidden_states, text)
        text.mul_(2)
        assert not torch.equal(attn(hidden_states, text), first)
    assert processor.state.text is None


def test_autocast_is_not_taken_for_what_came_before(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    decouple(attn, image())
    exact = attn(hidden_states, text)
    with torch.autocast("cpu", torch.bfloat16):
        assert attn(hidden_states, text).dtype == torch.bfloat16
    assert torch.equal(attn(hidden_states, text), exact)


def test_weights_that_accelerate_moves_about_are_not_remembered(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    decouple(attn, image())
    expected = attn(hidden_states, text)
    processor = decouple(attn, *attn.processor.state.terms)  # pyright: ignore
    cpu_offload(attn, execution_device=torch.device("cpu"))
    assert torch.equal(attn(hidden_states, text), expected)
    assert processor.state.text is None


def test_a_hooked_or_replaced_projection_is_not_remembered(
    attn: Attention, hidden_states: Tensor, text: Tensor
) -> None:
    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    processor = decouple(attn, image())
    attn.to_k = Doubled(CONTEXT_DIM, INNER_DIM, bias=False)
    attn(hidden_states, text)
    assert processor.state.text is None
    attn.to_k = nn.Linear(CONTEXT_DIM, INNER_DIM, bias=False)
    attn.to_k.register_forward_hook(lambda *_: None)
    attn(hidden_states, text)
    assert processor.state.text is None
