"""What the eye says of the figures, and of which weights it said so. Written by hand, after looking."""

SEEN_ON = "2026-11-22"

SEEN_WEIGHTS = "e22b9a724b49"
"""`page.fingerprint` of the weights whose pictures were looked at."""

SEEN_RUNS = "70d1d1517b2a"
"""`compared.runs_fingerprint` of the runs that were looked at."""

VERDICTS: dict[str, str] = {
    "overview": (
        "Yes, softly. The image prompt's colours are in all four, the text decides ground and face, the "
        "mask and the edges what stays; two hearts and the fish wipe the face out."
    ),
    "variations": (
        "Half. Colours, ground and a rough outline come over and differ from seed to seed; most things "
        "cannot be recognised without looking at the image prompt."
    ),
    "fine-tuned": (
        "The style mostly, the content hardly. Six of eight pictures are on dark blue paper, fewer than "
        "before the base was trained further under a style that was not; the image prompt changes what "
        "is drawn, but hardly anything can be recognised, and neither number says for certain that it "
        "is the right thing."
    ),
    "control": (
        "Yes, softly. The penguin comes in the fire engine's red, the volcano in the violin's brown, "
        "the fire engine as a yellow box; fine lines and inner edges are lost."
    ),
    "image-to-image": (
        "Yes. The fire engine goes yellow, the penguin red, the popcorn pink, and the outline goes as "
        "the strength grows."
    ),
    "inpainting": (
        "Yes for the colours: the new half has the image prompt's and joins the old one, on white, "
        "where without it grounds and stains appear. What it draws is a blob."
    ),
    "text": (
        "Yes, and better than before: faces keep their eyes and mouths and flags their stripes, in the "
        "image prompt's colours. The fish and the hearts, of one colour, wipe the face out."
    ),
    "style-and-layout": (
        "The style yes, the layout in some rows: “both” has the style picture's colours and none of the "
        "other's, unlike with all layers. The cup of the popcorn and the penguin's tall shape come "
        "over; the layout's number does not exclude 0."
    ),
    "compared": (
        "No. After 300 steps each, decoupled, concatenated and replaced can hardly be told apart by "
        "eye: colours and outline come over in all. The flag of Comoros has more of its colours where "
        "the tokens are concatenated. unCLIP is behind."
    ),
    "compared-control": (
        "They are alike. The image prompt overrules the edges in all of them: a cockroach stays a "
        "cockroach in the globe's outline. Only unCLIP, which follows the image prompt least, leaves "
        "the edges a little more."
    ),
    "compared-text": (
        "For the text, yes; for the image prompt, no. The decoupled adapter leaves the faces whole and "
        "tints them; concatenated tokens take over more of the reference and cost two faces their "
        "features. unCLIP hardly tints; replaced reads no text."
    ),
}
"""Figure → whether it keeps its promise."""
