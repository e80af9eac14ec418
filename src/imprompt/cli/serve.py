"""`imprompt serve`: pictures over HTTP, and a page."""

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imprompt.cli.terminal import (
    exit_on_interrupt,
    import_with_extra,
    pause_garbage_collection,
    quiet_libraries,
)
from imprompt.errors import ConfigError
from imprompt.runtime.deferred_imports import defer_import

if TYPE_CHECKING:
    import socket

    from imprompt.serving.access import Access
    from imprompt.serving.settings import ServerSettings
    from imprompt.serving.supervisor import Worker

_KEY_VARIABLE = "IMPROMPT_KEY"


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="TOML file: models, limits, batching. Default: the embedded model.", show_default=False
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --key-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 chooses a free one.")] = 8000,
    key_file: Annotated[
        Path | None,
        typer.Option(help='File with a key in each line, or "NAME KEY": clients must send one of them.'),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on any address without a key.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name under which the server answers, besides localhost. May be repeated."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web page that may call the server: https://example.org. May be repeated."),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Same seed, same bytes, however many requests run; slower for few."
        ),
    ] = False,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray", help="Compute in engines of a Ray cluster; the table \\[ray] of CONFIG says how many."
        ),
    ] = False,
    drain_timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that running jobs get to finish at SIGTERM or Ctrl-C.")
    ] = 30.0,
) -> None:
    r"""Serve pictures over HTTP: a page, and the APIs of OpenAI and of A1111's web UI.

    The OpenAI client, Open WebUI, SillyTavern and webuiapi work with it as
    they are; their address is http://127.0.0.1:8000/v1 or .../sdapi/v1.

    A configuration names more models:

        \[\[models]]
        name = "sd15"
        base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        adapters = \["sd15", "sd15-plus"]

    [bold]Examples[/bold]

    imprompt serve

    imprompt serve models.toml --host 0.0.0.0 --key-file keys.txt
    """
    from imprompt.serving import supervisor

    with exit_on_interrupt():
        settings = import_with_extra("imprompt.serving.settings", "serve")
        values = settings.ServerSettings() if config is None else settings.ServerSettings.from_toml(config)
        if deterministic:
            batching = values.batching.model_copy(update={"deterministic": True})
            values = values.model_copy(update={"batching": batching})
        if ray and values.ray is None:
            values = values.model_copy(update={"ray": settings.Replicas()})
        access = _read_access(
            host, key_file, insecure=insecure, hosts=allow_host or (), origins=allow_origin or ()
        )
        listener = supervisor.listen(host, port)
    supervisor.log_to_standard_error()
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"serving on http://{address}:{listener.getsockname()[1]}/ (Ctrl-C stops)")

    def work(worker: "Worker") -> None:
        _run_server(worker, listener, values, access, drain_timeout)

    supervisor.supervise(listener, work)


def _run_server(
    worker: "Worker",
    listener: "socket.socket",
    settings: "ServerSettings",
    access: "Access",
    drain_timeout: float,
) -> None:
    """Serve in the worker process; what it imports, the supervisor does not need."""
    with pause_garbage_collection():
        defer_import("scipy.stats")
        server, service = (
            import_with_extra(f"imprompt.serving.{name}", "serve") for name in ("server", "service")
        )
        quiet_libraries()
    options = service.ServerOptions(
        access=access,
        page=Path(str(service.__file__)).parent / "page",
        draw=_find_drawing(),
        folder=worker.folder,
        restarts=worker.restarts,
    )
    server.run_server(
        service.Service(settings, options),
        listener,
        drain_seconds=drain_timeout,
        on_start=worker.report_ready,
    )


def _read_access(host: str, key_file: Path | None, *, insecure: bool, hosts: Any, origins: Any) -> "Access":
    import os

    access = import_with_extra("imprompt.serving.access", "serve")
    keys = {} if key_file is None else access.read_keys(key_file)
    if key := os.environ.get(_KEY_VARIABLE):
        keys[key] = _KEY_VARIABLE
    is_local = access.is_loopback(host)
    if not (is_local or keys or insecure):
        raise ConfigError(
            f"everybody who reaches {host} could use this server: give --key-file with a key in it, or "
            "--insecure if that is meant"
        )
    # Elsewhere the server has names that it does not know, and a key keeps other pages out.
    names = {*access.LOOPBACK, host, *hosts} if is_local or hosts else ()
    return access.Access(keys, names, origins)


def _find_drawing() -> "Callable[[int], Any] | None":
    """Return what draws a new character, if the packages for it are installed."""
    if not all(importlib.util.find_spec(name) for name in ("dicebear", "resvg_py")):
        return None

    def draw(seed: int) -> Any:
        from imprompt.lab.making import characters, drawing

        return drawing.draw(characters.find_character({}, random.Random(seed), None), 256)

    return draw
