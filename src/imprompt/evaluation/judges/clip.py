"""CLIP as the judge: pictures and captions in one space. ViT-L/14 is the paper's (Table 1)."""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.judge import Judge, load_whole, loaded, place_of
from imprompt.inputs.crop import encoder_pixels
from imprompt.inputs.encoder import CLIP_MEAN, CLIP_STD, RGB, strip_folders

PAPER_JUDGE = "openai/clip-vit-large-patch14"


class ClipJudge(Judge):
    """A CLIP model; features are its projected embeddings.

    Pictures become pixels as by CLIP's own preprocessing: the shorter side to the model's size (bicubic), the
    middle square, mean and deviation of the channels. So what lies at a long side's ends is not judged.

    Args:
        network: the model
        tokenizer: its own
        mean: subtracted from the RGB channels (0–1)
        std: what they are divided by then
        name: what tables call it
    """

    network: CLIPModel

    def __init__(
        self,
        network: CLIPModel,
        tokenizer: CLIPTokenizer,
        *,
        mean: RGB = CLIP_MEAN,
        std: RGB = CLIP_STD,
        name: str = "CLIP",
    ) -> None:
        super().__init__(network, name=name)
        self.tokenizer, self.mean, self.std = tokenizer, mean, std
        self.image_size = int(network.config.vision_config.image_size)  # pyright: ignore
        self.text_length = int(network.config.text_config.max_position_embeddings)  # pyright: ignore

    def pixels(self, picture: Image.Image) -> Float[Tensor, "3 size size"]:
        """The picture's middle square, normalised."""
        return encoder_pixels(picture, self.image_size, mean=self.mean, std=self.std)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """The projected image embedding."""
        return self.network.visual_projection(self.network.vision_model(pixels).pooler_output)

    @property
    def reads_text(self) -> bool:
        """It does."""
        return True

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """The captions' token ids, and how many captions had to be cut."""
        return tokenized(self.tokenizer, captions, self.text_length)

    @torch.no_grad()
    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions dim"]:
        """The projected text embedding."""
        return self.network.text_projection(self.network.text_model(**tokens).pooler_output)


def load_clip_judge(source: str | Path = PAPER_JUDGE) -> ClipJudge:
    """Load a CLIP model as the judge, for float32.

    Args:
        source: a folder with model, tokenizer and `preprocessor_config.json`, or "owner/name[:subfolder]" on
            the hub

    Raises:
        UnknownModel: not there, or no CLIP model of pictures and text with its tokenizer; or it wants
            pictures made ready in another way than CLIP's
    """
    network = load_whole("CLIP model", source, CLIPModel.from_pretrained, model_type="clip")
    tokenizer = load_tokenizer(source, network.config.text_config.vocab_size)
    mean, std = load_normalisation(source, int(network.config.vision_config.image_size))
    return ClipJudge(network, tokenizer, mean=mean, std=std, name=strip_folders(str(source)))


def load_normalisation(source: str | Path, image_size: int) -> tuple[RGB, RGB]:
    """Mean and deviation of a CLIP model's image processor, after a look at the rest of it.

    Raises:
        UnknownModel: no image processor, or one that is not CLIP's for that size
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    place, where = place_of(source)
    processor = loaded(
        "image processor", source, lambda: CLIPImageProcessorPil.from_pretrained(place, **where)
    )
    if processor.size.shortest_edge != image_size or processor.crop_size.height != image_size:
        raise UnknownModel(
            f"no CLIP model at {source}: its image processor makes pictures of another size than {image_size}"
        )
    return tuple(processor.image_mean), tuple(processor.image_std)


def load_tokenizer(source: str | Path, vocabulary: int) -> CLIPTokenizer:
    """A CLIP tokenizer.

    Raises:
        UnknownModel: none there, or one with other tokens than the text encoder's `vocabulary`
    """
    place, where = place_of(source)
    tokenizer = loaded("tokenizer", source, lambda: CLIPTokenizer.from_pretrained(place, **where))
    if not 2 < len(tokenizer) <= vocabulary:
        raise UnknownModel(
            f"no tokenizer at {source} for its text encoder: it has {len(tokenizer):,} tokens, the encoder "
            f"{vocabulary:,}"
        )
    return tokenizer


def tokenized(tokenizer: CLIPTokenizer, captions: list[str], length: int) -> tuple[dict[str, Tensor], int]:
    """Token ids and their mask, padded to the longest; and how many captions were cut to `length` tokens."""
    whole = tokenizer(captions, verbose=False).input_ids
    cut = sum(len(ids) > length for ids in whole)
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}, cut
