"""`imprompt evaluate mini`: does the embedded model keep what its reference shows, and do what its text says?

    unseen combinations, parts, styles  ×  λ = 0, 0.5, 1         attributes kept, found among 200
    "sunglasses", "pixel-art style", "on a red background"       asked for and present, others kept, over λ

Beside every figure: the floor (pictures made from another reference), the ceiling (the drawing itself through
the autoencoder), and the judge's own accuracy (the drawing as it is).
"""

from imprompt.lab.suite.findings import SuiteSettings
from imprompt.lab.suite.measure import evaluate_mini, measure

__all__ = ["SuiteSettings", "evaluate_mini", "measure"]
