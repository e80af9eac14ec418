"""What the eye says of the figures, and of which weights it said so. Written by hand, after looking."""

SEEN_ON = "2026-11-22"

SEEN_WEIGHTS = "b0e16260821a"
"""`page.fingerprint` of the weights whose pictures were looked at."""

VERDICTS: dict[str, str] = {
    "variations": (
        "Half. Colours, ground and a rough outline come over and differ from seed to seed; most things "
        "cannot be recognised without looking at the image prompt."
    ),
    "fine-tuned": (
        "The style yes, the content hardly. Every picture is a blueprint although the image prompt stands"
        " on white, and the image prompt changes what is drawn; but hardly anything can be recognised, "
        "and neither the judge nor the layout's number says for certain that it is the right thing."
    ),
    "control": (
        "Yes, softly. The penguin comes in the fire engine's red, the volcano in the violin's brown, the "
        "fire engine as a yellow box; fine lines and inner edges are lost."
    ),
    "image-to-image": (
        "Yes. A brown violin goes pink and yellow, a blue penguin red, and the outline goes as the "
        "strength grows."
    ),
    "inpainting": (
        "Yes for the colours: the new half has the image prompt's and joins the old one. What it draws is"
        " a blob. The kept half changes by what the autoencoder loses."
    ),
    "text": (
        "Yes. Faces and flags as without the image prompt, in its colours. The yellow fish wipes the face"
        " out, and its blue grounds turn pale."
    ),
    "style-and-layout": (
        "The style yes, the layout hardly. “Both” has the style picture's colours and none of the "
        "other's, better than with all layers; the arrangement is the other picture's only in some rows "
        "(the stripes of the fire engine, the tall penguin), and its number does not exclude 0."
    ),
}
"""Figure → whether it keeps its promise."""
