"""The plain grounds that the embedded model knows by name."""

RGB = tuple[int, int, int]

GROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "grey": (150, 152, 156),
    "red": (224, 62, 54),
    "orange": (246, 150, 58),
    "yellow": (252, 222, 92),
    "green": (92, 182, 96),
    "cyan": (110, 214, 222),
    "blue": (72, 120, 224),
    "purple": (148, 92, 204),
    "pink": (248, 162, 196),
    "brown": (136, 94, 66),
}
"""Colour word → RGB of the ground that it names in captions."""
