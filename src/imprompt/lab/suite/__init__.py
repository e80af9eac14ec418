"""`imprompt evaluate mini`: does the embedded model preserve its reference, and does it follow its text?

    unseen combinations, parts, styles  ×  λ = 0, 0.5, 1         attributes kept, found among 200
    "sunglasses", "pixel-art style", "on a red background"       asked for and present, others kept, over λ

The page has bounds of every figure: the floor (images of another reference), the ceiling (the drawing itself
through the autoencoder), and the judge's own accuracy (the drawing as it is).

    subjects    unseen characters and texts        images      image prompts → images
    scoring     images → scores and figures        measure     all of it, and the report
    page        figures → report                   against     differences from an earlier report
    showcase    the README's picture               structure   edges and lines of an image
"""
