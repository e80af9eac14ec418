"""The values from which settings of image prompts choose.

They are in a module that does not import torch, so that jobs and pictures are read quickly.
"""

from typing import Literal

Input = Literal["image_embedding", "image_features", "last_image_features", "image_pixels", "face_embedding"]
"""An input of a projection: a picture's projected embedding "d", its features "patches d" (penultimate hidden
states, class token first), its last hidden states "patches d", the normalized pixels "3 size size" that an
image encoder sees, or the embedding "d" of
the face in it, which a face model computes. No published adapter takes pixels."""

NoImage = Literal["blank", "zeros", "black picture", "nothing"]
"""What stands for "no image" on the negative branch of guidance: zero embeddings and the features of a
picture in the encoder's mean color, zeros, what the encoder makes of a black picture, or no image prompt."""

CropName = Literal["center", "top", "bottom", "left", "right", "pad", "stretch", "tiles", "native"]
"""The part of a picture that an encoder sees, see `imprompt.inputs.crop`."""

Noise = Literal["fade", "dissolve", "gaussian", "shuffle"]
"""A kind of noise that `imprompt.noise_image` adds to a picture."""

Combine = Literal["concat", "average", "add", "subtract", "normalized average", "interpolate"]
"""How several pictures of one reference are combined, see `imprompt.inputs.embeddings.combine_embeddings`."""

MAX_IMAGES = 1000
"""The most pictures of one reference: each has 4 or more tokens in every layer."""
