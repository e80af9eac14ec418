"""CLIP's tokenizer, which Stable Diffusion 1.5, 2.x and XL share: 49,408 byte-pair tokens.

A token is a byte, a byte at the end of a word, the result of a merge, or the mark of a text's start or end,
in this order (openai/CLIP, `clip/simple_tokenizer.py`). Only the 48,894 merges are stored; NOTICE states
where they are from.
"""

import gzip
import json
from pathlib import Path

_MERGES = Path(__file__).parent / "clip-merges.txt.gz"
_WORD_END = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_TEXT_LENGTH = 77


def write_tokenizer(folder: Path, *, padding: str | None = None) -> None:
    """Write CLIP's tokenizer as the files from which transformers' CLIPTokenizer is loaded.

    Args:
        folder: the folder to make
        padding: the token that fills a text to 77 tokens; by default the mark of a text's end
    """
    merges = gzip.decompress(_MERGES.read_bytes()).decode()
    folder.mkdir(exist_ok=True)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    vocabulary = {token: index for index, token in enumerate(_list_tokens(merges))}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _TEXT_LENGTH}
    marks = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": padding or _END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | marks))


def _list_tokens(merges: str) -> list[str]:
    letters = _list_byte_letters()
    merged = [line.replace(" ", "") for line in merges.splitlines()]
    return [*letters, *(letter + _WORD_END for letter in letters), *merged, _START, _END]


def _list_byte_letters() -> list[str]:
    """Return the letter that stands for each byte: printable Latin-1 first, then those without a picture.

    The latter are written as letters from U+0100 on, as in GPT-2 (openai/gpt-2, `encoder.py`).
    """
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    return [*map(chr, printable), *(chr(0x100 + i) for i in range(256 - len(printable)))]
