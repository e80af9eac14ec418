"""Compile a graph once, in a process of its own; standard input holds {"model", "shapes", "options"}.

On some processors OpenVINO ends the process by a signal (SIGFPE in compile_model, openvino issue 35943),
which no `except` can catch. This file imports OpenVINO only, so that it starts quickly.
"""

import json
import sys
from typing import Any


def compile_graph(core: Any, model: str, shapes: dict[str, list[int]], options: dict[str, Any]) -> Any:
    """Compile a graph for inputs of these shapes; -1 stands for any number."""
    import openvino

    graph = core.read_model(model)
    graph.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes.items()})
    return core.compile_model(graph, "CPU", options)


def main() -> None:
    """Compile and run the graph that standard input describes, with zeros."""
    import numpy
    import openvino

    job = json.load(sys.stdin)
    compiled = compile_graph(openvino.Core(), job["model"], job["shapes"], job["options"])
    zeros = {
        name: numpy.zeros([max(1, size) for size in shape], numpy.float32)
        for name, shape in job["shapes"].items()
    }
    compiled(zeros)


if __name__ == "__main__":
    main()
