"""Which models there are, where they come from and where they lie: `configs/models.yaml` and the code for it.

    python -m ldm.registry list | show NAME | where NAME | verify [NAME]
    python -m ldm.registry pull NAME [--from DIR] | register NAME FILE

Models lie below $BIFROST_MODELS, by default ./models.
"""

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.registry.models import HASH_FILE, find, folder_of, load_registry, missing_files
from ldm.registry.pull import changed, changing, pull_model
from ldm.settings.cli import new_app, run_module
from ldm.settings.config import to_plain


def list_models() -> dict[str, Any]:
    """All models: present or not, size, what they are."""
    registry = load_registry()
    states = {name: "missing" if missing_files(model) else "present" for name, model in registry.items()}
    for name, model in registry.items():
        typer.echo(f"{states[name]:8} {name:26} {model.size_gb:6.1f} GB  {model.about}")
    return {"models": states}


def show(name: Annotated[str, typer.Argument(help="model")]) -> dict[str, Any]:
    """Everything known of a model."""
    model = find(name, load_registry())
    typer.echo(f"{name}: {model.about}\nlicence: {model.licence}\nsize: {model.size_gb} GB")
    typer.echo(f"used by: {', '.join(model.used_by)}\nfolder: {folder_of(model)}")
    for place in model.places:
        origin = place.hub or place.url or ", ".join(place.packages) or f"by hand: {place.manual}"
        typer.echo(f"source: {origin} {place.file_name}".rstrip())
    if model.then:
        typer.echo(f"then: {model.then}")
    return {"name": name, **to_plain(model)}


def where(name: Annotated[str, typer.Argument(help="model")]) -> dict[str, Any]:
    """The folder of a model."""
    folder = folder_of(find(name, load_registry())).as_posix()
    typer.echo(folder)
    return {"folder": folder}


def pull(
    name: Annotated[str, typer.Argument(help="model")],
    offline: Annotated[Path | None, typer.Option("--from", help="folder of files fetched elsewhere")] = None,
) -> None:
    """Download a model, or copy it from a folder; continues what was interrupted."""
    model = find(name, load_registry())
    with changing(folder_of(model)) if missing_files(model) else contextlib.nullcontext():
        pull_model(name, model, offline)


def register(
    name: Annotated[str, typer.Argument(help="model")],
    file: Annotated[Path, typer.Argument(help="weight file, or zip or tar archive")],
) -> None:
    """Put a file that was fetched by hand in its place."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    model = find(name, load_registry())
    with changing(folder_of(model)):
        pull_model(name, model, file)


def verify(name: Annotated[str, typer.Argument(help="model; default: all that are present")] = "") -> None:
    """Compare the files with the recorded hashes."""
    registry = load_registry()
    present = [known for known, model in registry.items() if (folder_of(model) / HASH_FILE).exists()]
    for chosen in [name] if name else present:
        if wrong := changed(find(chosen, registry)):
            raise ValueError(f"{chosen}: differs from what was pulled: {', '.join(wrong)}")
        typer.echo(f"{chosen}: unchanged")


def build_app() -> typer.Typer:
    app = new_app("Models: what there is, where it comes from, where it lies.")
    app.command("list")(list_models)
    for verb in (show, where, pull, register, verify):
        app.command(verb.__name__)(verb)
    return app


if __name__ == "__main__":
    run_module(build_app)
