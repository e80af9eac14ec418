"""docs/pipelines.md says what the tests before this one found, no more and no less."""

from pathlib import Path

import pytest

import matrix

PAGE = Path(__file__).parents[1] / "docs" / "pipelines.md"


def test_the_committed_page_says_what_ran(request: pytest.FixtureRequest) -> None:
    outcomes = request.config.stash[matrix.OUTCOMES]
    if not matrix.is_complete(outcomes):
        pytest.skip("only after all of test_pipelines and test_pipelines_controls")
    target = request.config.getoption("--write-matrix")
    if target is not None:
        Path(target).write_text(matrix.page(outcomes))
    assert PAGE.read_text() == matrix.page(outcomes), "write it again with --write-matrix docs/pipelines.md"
