"""A deferred module is loaded when something of it is used, and is then the module itself."""

import subprocess
import sys

SCRIPT = """
import sys
from imprompt.runtime.deferred_imports import defer_import
defer_import("xml.dom.minidom")
defer_import("no_such_module")
import xml.dom.minidom as deferred
print("parseString" in vars(deferred))
print(deferred.parseString("<a/>").documentElement.tagName, type(sys.modules["xml.dom.minidom"]).__name__)
print("no_such_module" in sys.modules)
"""


def test_a_deferred_module_is_loaded_at_its_first_use() -> None:
    command = [sys.executable, "-c", SCRIPT]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    assert output[:3] == ["False", "a module", "False"]
