"""bench/serving_load.py runs, and its checks are kept by a server of the embedded model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "bench" / "serving_load.py"


def test_an_unknown_check_is_named() -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, "everything"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "there is no check everything; there are overload, hang-ups" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("check", ["hang-ups", "kill"])
def test_the_server_keeps_its_promise_under_load(check: str) -> None:
    command = [sys.executable, str(SCRIPT), check, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    findings = json.loads(result.stdout)
    assert len(findings) >= 2
    assert [finding for finding in findings if not finding["is_kept"]] == []
    assert result.returncode == 0
