"""Base models in a single file: Stable Diffusion checkpoints in the layout of the original code.

A file is recognized by the names and shapes of its tensors, never by its name. Its configuration ships in
this package, so nothing is downloaded.

    kinds            what a file of tensors is: a LoRA, an autoencoder, a ControlNet, ...
    bases            which base model a file holds, and what other models of its layout are
    recognition      a file → one of the two
    configuration    a base → its folder of configurations in diffusers' format
    tokenizer        CLIP's tokenizer, which every base here has
    loading          a file and such a folder → a pipeline

Names are imported when they are first used, because recognition needs no diffusers.
"""

from typing import TYPE_CHECKING, Any

from imprompt.runtime.lazy_names import import_lazy_name, read_lazy_names

if TYPE_CHECKING:
    from imprompt.generation.single_file.configuration import read_configuration as read_configuration
    from imprompt.generation.single_file.loading import load_autoencoder_file as load_autoencoder_file
    from imprompt.generation.single_file.loading import load_single_file as load_single_file
    from imprompt.generation.single_file.recognition import SingleFile as SingleFile
    from imprompt.generation.single_file.recognition import recognize_checkpoint as recognize_checkpoint
    from imprompt.generation.single_file.recognition import require_base as require_base

__all__ = [
    "SingleFile",
    "load_autoencoder_file",
    "load_single_file",
    "read_configuration",
    "recognize_checkpoint",
    "require_base",
]

_MODULES = read_lazy_names(__file__)


def __getattr__(name: str) -> Any:
    value = globals()[name] = import_lazy_name(__name__, _MODULES, name)
    return value
