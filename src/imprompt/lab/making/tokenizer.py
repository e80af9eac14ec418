"""The embedded model's tokenizer: byte-pair pieces of its captions, in CLIP's format."""

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Sequence[str], *, size: int, length: int) -> CLIPTokenizer:
    """Train a CLIP tokenizer with at most `size` pieces; prompts are padded or cut to `length` tokens."""
    pieces = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    clip = CLIPTokenizer().backend_tokenizer  # how CLIP splits text into words, before any pieces
    pieces.normalizer, pieces.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    # Any text must have tokens, at the end of a word too. The trainer would number letters in the order of a
    # hash table, another one in every process; handed in, they keep their places.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[BEGIN, END, *letters, *(f"{letter}</w>" for letter in letters)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    pieces.train_from_iterator(captions, trainer)
    return CLIPTokenizer(vocab=pieces.get_vocab(), merges=read_merges(pieces), model_max_length=length)


def read_merges(pieces: Tokenizer) -> Any:
    """Return the learned merges, in order."""
    return [tuple(merge) for merge in json.loads(pieces.to_str())["model"]["merges"]]
