"""One sheet of unseen characters drawn through several adapters, with the same noise for all.

    python bench/adapter_sheet.py ADAPTER [ADAPTER ...] [--weights FOLDER] [--subjects N] [--output FILE]

The first row has the references, then each adapter has a row: an embedded one (`mini`, `mini-plus`) or a
file, named by its folder, which may be for the embedded transformer in `--weights`. λ = 1, no text.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from imprompt.lab.suite.images import ImageSettings, SuiteCondition, generate_images
from imprompt.lab.suite.measure import load_models
from imprompt.lab.suite.subjects import sample_subjects
from imprompt.report import PictureRow, draw_sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER")
    parser.add_argument("--weights", type=Path, help="folder of an embedded model of your own")
    parser.add_argument("--subjects", type=int, default=10, help="unseen characters")
    parser.add_argument("--output", type=Path, default=Path("adapters.jpg"))
    options = parser.parse_args(arguments)
    subjects = sample_subjects("combinations", options.subjects)
    rows = [PictureRow([subject.picture for subject in subjects], "reference")]
    for adapter in options.adapters:
        file = Path(adapter)
        models = load_models(options.weights if file.is_file() else None, adapter)
        pictures = generate_images(models, subjects, SuiteCondition(1.0), ImageSettings())
        rows.append(PictureRow(pictures, file.parent.name or adapter))
    draw_sheet([""] * len(subjects), rows).save(options.output, quality=90)
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
