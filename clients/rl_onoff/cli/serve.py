"""`rl-onoff serve`: the service, from a checkout."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from rl_onoff.errors import ConfigurationError, MissingDependency


def serve(
    a: Annotated[str | None, typer.Option("--a", help="Model A, the base: a folder or a hub id.")] = None,
    b: Annotated[str | None, typer.Option("--b", help="Model B, its tuned version.")] = None,
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="models.yaml, for more than one pair.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at. Default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free one. Default: 8000.")] = None,
    backend: Annotated[str | None, typer.Option(help="For --a and --b. Default: hf.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="For --a and --b: auto, float32, bfloat16, ... Default: auto.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="For --a and --b: auto, cpu, cuda, cuda:1, ... Default: auto.")
    ] = None,
) -> None:
    """Serve a pair of models; without --a, --b and --config the demo pair of the checkout."""
    if (a is None) != (b is None):
        raise typer.BadParameter("--a and --b go together")
    if a is not None and config is not None:
        raise typer.BadParameter("either --a and --b, or --config")
    loading = _given(backend=backend, dtype=dtype, device=device)
    if a is None and loading:
        raise typer.BadParameter(f"--{' and --'.join(loading)} without --a and --b; --config has them for every pair")
    if backend is not None and backend not in (known := _service_module("workers.backends").BACKENDS):
        raise typer.BadParameter(f"there is no {backend!r}; there are: {', '.join(known)}", param_hint="--backend")
    configuration = _service_module("app.config")
    address = _given(host=host, port=port)
    try:
        if a is not None:
            settings = configuration.pair_settings(a, b, **loading, **address)
        else:
            settings = configuration.load(config).model_copy(update=address)
    except ConfigurationError as error:
        raise typer.BadParameter(error.detail) from error
    raise typer.Exit(_service_module("app.main").serve(settings))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _service_module(name: str) -> Any:
    # By name: the SDK and CLI are installed without the service, and import nothing of it.
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"there is no module {error.name}; the service runs from a checkout of the repository: "
            "pip install -e '.[server,hf]'"
        ) from error
