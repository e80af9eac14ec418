"""CLIP as the judge: pictures and captions in one space. The paper uses ViT-L/14 (Table 1)."""

from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from imprompt.errors import UnknownModel
from imprompt.evaluation.judges.judge import Judge, load_complete_model, load_part
from imprompt.inputs.crop import encoder_pixels
from imprompt.inputs.encoder import CLIP_MEAN, CLIP_STD, RGB, strip_folders

PAPER_JUDGE = "openai/clip-vit-large-patch14"


class ClipJudge(Judge):
    """A CLIP model as the judge; features are its projected embeddings.

    Pictures are preprocessed as CLIP does it: the shorter side is resized to the model's size (bicubic), the
    middle square is taken, and the channels are normalized. So the ends of a long side are not judged.

    Args:
        network: the model
        tokenizer: the model's tokenizer
        mean: subtracted from the RGB channels (0–1)
        std: divides the RGB channels afterwards
        name: the judge's name in tables
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
        """Return the picture's middle square, normalized."""
        return encoder_pixels(picture, self.image_size, mean=self.mean, std=self.std)

    @torch.no_grad()
    def encode(self, pixels: Float[Tensor, "batch 3 size size"]) -> Float[Tensor, "batch dim"]:
        """Return the projected image embeddings."""
        return self.network.visual_projection(self.network.vision_model(pixels).pooler_output)

    @property
    def reads_text(self) -> bool:
        """True: captions have features."""
        return True

    def tokenize(self, captions: list[str]) -> tuple[dict[str, Tensor], int]:
        """Return the captions' token ids, and how many captions had to be cut."""
        return tokenize_captions(self.tokenizer, captions, self.text_length)

    @torch.no_grad()
    def encode_text(self, tokens: dict[str, Tensor]) -> Float[Tensor, "captions dim"]:
        """Return the projected text embeddings."""
        return self.network.text_projection(self.network.text_model(**tokens).pooler_output)


def load_clip_judge(source: str | Path = PAPER_JUDGE) -> ClipJudge:
    """Load a CLIP model as the judge, in float32.

    Args:
        source: a folder with model, tokenizer and `preprocessor_config.json`, or "owner/name[:subfolder]" on
            the hub

    Raises:
        UnknownModel: there is no CLIP model of pictures and text with its tokenizer, or its preprocessing is
            not that of CLIP
    """
    network = load_complete_model("CLIP model", source, CLIPModel.from_pretrained, model_type="clip")
    tokenizer = load_tokenizer(source, network.config.text_config.vocab_size)
    mean, std = load_normalization(source, int(network.config.vision_config.image_size))
    return ClipJudge(network, tokenizer, mean=mean, std=std, name=strip_folders(str(source)))


def load_normalization(source: str | Path, image_size: int) -> tuple[RGB, RGB]:
    """Load the mean and deviation of a CLIP model's image processor, and check its other settings.

    Raises:
        UnknownModel: there is no image processor, or it is not CLIP's for that size
    """
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = load_part("image processor", source, CLIPImageProcessorPil.from_pretrained)
    if processor.size.shortest_edge != image_size or processor.crop_size.height != image_size:
        raise UnknownModel(
            f"no CLIP model at {source}: its image processor makes pictures of another size than {image_size}"
        )
    return tuple(processor.image_mean), tuple(processor.image_std)


def load_tokenizer(source: str | Path, vocabulary: int) -> CLIPTokenizer:
    """Load a CLIP tokenizer.

    Raises:
        UnknownModel: there is none, or it has other tokens than the text encoder's `vocabulary`
    """
    tokenizer = load_part("tokenizer", source, CLIPTokenizer.from_pretrained)
    if not 2 < len(tokenizer) <= vocabulary:
        raise UnknownModel(
            f"no tokenizer at {source} for its text encoder: it has {len(tokenizer):,} tokens, the encoder "
            f"{vocabulary:,}"
        )
    return tokenizer


def tokenize_captions(
    tokenizer: CLIPTokenizer, captions: list[str], length: int
) -> tuple[dict[str, Tensor], int]:
    """Return token ids and their mask, padded to the longest, and how many captions were cut."""
    whole = tokenizer(captions, verbose=False).input_ids
    cut = sum(len(ids) > length for ids in whole)
    tokens = tokenizer(captions, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}, cut
