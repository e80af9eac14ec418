"""Base models in a single file: Stable Diffusion checkpoints in the layout of the original code.

A file is recognized by the names and shapes of its tensors, never by its name. Its configuration ships in
this package, so nothing is downloaded.

    kinds            what a file of tensors is: a LoRA, an autoencoder, a ControlNet, ...
    bases            which base model a file holds, and what other models of its layout are
    recognition      a file → one of the two
    configuration    a base → its folder of configurations in diffusers' format
    tokenizer        CLIP's tokenizer, which every base here has
    loading          a file and such a folder → a pipeline
"""

from imprompt.generation.single_file.configuration import read_configuration
from imprompt.generation.single_file.loading import load_autoencoder_file, load_single_file
from imprompt.generation.single_file.recognition import Checkpoint, recognize_checkpoint, require_base

__all__ = [
    "Checkpoint",
    "load_autoencoder_file",
    "load_single_file",
    "read_configuration",
    "recognize_checkpoint",
    "require_base",
]
