"""The tokenizer of the embedded transformer's sequence of text tokens."""

from typing import Any

from transformers import CLIPTokenizer, PreTrainedTokenizerFast

__all__ = ["BoundedTokenizer", "PreTrainedTokenizerFast"]  # diffusers looks up the base class in this module


class BoundedTokenizer(CLIPTokenizer):
    """CLIP's tokenizer, which makes at most `model_max_length` tokens.

    FLUX.1's pipelines ask their second tokenizer for 512 tokens; the embedded text encoder has fewer places.
    """

    def __call__(self, *args: Any, max_length: int | None = None, **options: Any) -> Any:
        """Return the tokens of texts; `max_length` is lowered to `model_max_length`."""
        bound = {} if max_length is None else {"max_length": min(max_length, self.model_max_length)}
        return super().__call__(*args, **bound, **options)
