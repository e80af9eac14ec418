"""What the eye says of the figures, and of which weights it said so. Written by hand, after looking."""

SEEN_ON = "2026-11-27"

SEEN_WEIGHTS = "7f50f80d9030"
"""`page.fingerprint` of the weights whose pictures were looked at."""

SEEN_RUNS = "6a3a81bea8fb"
"""`compared.runs_fingerprint` of the runs that were looked at."""

VERDICTS: dict[str, str] = {
    "overview": (
        "Yes. The image prompt's colours are in all four, the text decides ground and face, the mask what "
        "stays, the edges the shape, which is where pictures become things; two hearts and the fish wipe "
        "the face out."
    ),
    "variations": (
        "Half. Colours, ground and a rough outline come over and differ from seed to seed; most things "
        "cannot be recognised without looking at the image prompt."
    ),
    "fine-grained": (
        "Yes, a little. The popcorn gets its grains, the fish an eye, the fire engine its blue windows and a "
        "flat roof, and two seeds are nearer to each other; outlines are as soft. On eight concepts "
        "no number tells them apart, on 207 several do (../results.md)."
    ),
    "fine-tuned": (
        "The style mostly, the content hardly. Six of eight pictures are on dark blue paper, fewer than "
        "before the base was trained further under a style that was not; the image prompt changes what "
        "is drawn, but hardly anything can be recognised, and neither number says for certain that it "
        "is the right thing."
    ),
    "control": (
        "Yes, clearly. A yellow fire engine, a red penguin, two hearts in the mouse's grey, a brown "
        "volcano, a pink bucket, a violin in the popcorn's colours; wheels, stripes and other inner edges "
        "are lost."
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
        "The first half. After 1,000 steps each nobody could say which column is which, but for unCLIP’s "
        "and “no image prompt”: colours, stripes and outline come over in all. Better than concatenated "
        "tokens it is not; of the flag of Comoros the latter keep more stripes."
    ),
    "compared-control": (
        "They are alike. The image prompt overrules the edges in all of them: a cockroach becomes a brown "
        "coast in the globe’s outline, the signpost nearly nothing. The decoupled one’s small lead in "
        "edges cannot be seen in six rows."
    ),
    "compared-text": (
        "Yes, by all that read text: the thing is the text’s, the colours the image prompt’s. Decoupled and "
        "unCLIP leave the tree and the mark on the button; concatenated and two-stream tokens take over "
        "the flag’s white and its outline. The dark moon is lost in all but unCLIP’s."
    ),
}
"""Figure → whether it keeps its promise."""
