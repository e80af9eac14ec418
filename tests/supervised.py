"""A server without models under a supervisor, as a process of its own: python supervised.py HOW FILE.

It answers every request with its process id, how many were before it, and its folder. HOW is "serve"; or
"refuse", and it says why it does not start; or "die", and it dies while it starts. A server that takes the
place of a killed one begins to answer when FILE exists.
"""

import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time
from pathlib import Path

from imprompt import cli
from imprompt.errors import ConfigError
from imprompt.serving import supervisor
from imprompt.serving.supervisor import Worker, listen, log_to_standard_error, supervise


def serve(how: str, file: Path) -> None:
    log_to_standard_error()
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)

    def work(worker: Worker) -> None:
        if how == "refuse":
            raise ConfigError("there is no model")
        if how == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        while worker.restarts and not file.exists():
            time.sleep(0.01)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps([os.getpid(), worker.restarts, str(worker.folder)]).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        server = socketserver.ThreadingTCPServer(("", 0), Handler, bind_and_activate=False)
        server.socket = listener
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
        (worker.folder / "a picture").touch()
        worker.report_ready()
        server.serve_forever(0.05)

    supervise(listener, work)


if __name__ == "__main__":
    supervisor._PAUSE = 0.1
    how, file = sys.argv[1:]
    cli.app = lambda *_, **__: serve(how, Path(file))  # so that an error ends as that of a command
    sys.exit(cli.main([]))
