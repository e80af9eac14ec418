"""What every image projection offers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from imprompt.encoder import Input


class ImageProjection(nn.Module, ABC):
    """So many tokens for each picture, each as wide as the base model's text embeddings.

    Attributes:
        takes: width of each input, in the order of `forward`'s arguments
        context_dim: width of a token
        tokens: how many tokens one picture becomes
    """

    takes: Mapping[Input, int]
    context_dim: int
    tokens: int

    @abstractmethod
    def forward(self, *inputs: Tensor) -> Float[Tensor, "batch {self.tokens} {self.context_dim}"]:
        """Project the inputs of each picture to image tokens."""
