"""`imprompt serve`: pictures over HTTP, and a page."""

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
from imprompt.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from imprompt.serving.access import Access

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
    with exit_on_interrupt(), pause_garbage_collection():
        server, service, settings = (
            import_with_extra(f"imprompt.serving.{name}", "serve")
            for name in ("server", "service", "settings")
        )
        values = settings.ServerSettings() if config is None else settings.ServerSettings.from_toml(config)
        if deterministic:
            batching = values.batching.model_copy(update={"deterministic": True})
            values = values.model_copy(update={"batching": batching})
        access = _read_access(
            host, key_file, insecure=insecure, hosts=allow_host or (), origins=allow_origin or ()
        )
        listener = server.listen(host, port)
        quiet_libraries()
    page = Path(str(service.__file__)).parent / "page"
    options = service.ServerOptions(access=access, page=page, draw=_find_drawing())
    server.log_to_standard_error()
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"serving on http://{address}:{listener.getsockname()[1]}/ (Ctrl-C stops)")
    server.run_server(service.Service(values, options), listener, drain_seconds=drain_timeout)


def _read_access(host: str, key_file: Path | None, *, insecure: bool, hosts: Any, origins: Any) -> "Access":
    import os

    from imprompt.serving.access import LOOPBACK, Access, read_keys
    from imprompt.serving.server import is_loopback

    keys = {} if key_file is None else read_keys(key_file)
    if key := os.environ.get(_KEY_VARIABLE):
        keys[key] = _KEY_VARIABLE
    if not (is_loopback(host) or keys or insecure):
        raise ConfigError(
            f"everybody who reaches {host} could use this server: give --key-file with a key in it, or "
            "--insecure if that is meant"
        )
    # Elsewhere the server has names that it does not know, and a key keeps other pages out.
    names = {*LOOPBACK, host, *hosts} if is_loopback(host) or hosts else ()
    return Access(keys, names, origins)


def _find_drawing() -> "Callable[[int], Any] | None":
    """Return what draws a new character, if the packages for it are installed."""
    import random

    try:
        characters, drawing = (
            import_with_extra(f"imprompt.lab.making.{name}", "draw") for name in ("characters", "drawing")
        )
    except MissingExtra:
        return None

    def draw(seed: int) -> Any:
        return drawing.draw(characters.find_character({}, random.Random(seed), None), 256)

    return draw
