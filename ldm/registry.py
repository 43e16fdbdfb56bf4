"""Which models there are, where they come from and where they lie: `configs/models.yaml` and the code for it.

    python -m ldm.registry list | show NAME | where NAME | pull NAME [--from DIR] | register NAME FILE | verify [NAME]

Models lie below $BIFROST_MODELS, by default ./models. A model is put together in a folder beside its own and
renamed when it is whole, so what is there is complete. Hashes are recorded on the first pull.
"""  # noqa: E501

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from ldm.download import download
from ldm.files import file_sha256
from ldm.models import Model, Source, find, folder_of, lacks, load_registry
from ldm.options import new_app, run_app
from ldm.unpack import is_archive, unpack

log = logging.getLogger(__name__)

HASHES = "hashes.json"


def pull_model(name: str, model: Model, offline: Path | None = None) -> Path:
    """Get a model from the first source that works; returns its folder. ValueError lists what was tried."""
    folder = folder_of(model)
    if not lacks(model):
        log.info("%s is there", folder)
        return folder
    partial = folder.with_name(folder.name + ".partial")
    tried: list[str] = []
    if offline is not None:
        copy_offline(model, offline, partial)
        return settle(model, partial)
    for place in model.places:
        try:
            if place.hub:
                pull_hub(place, partial)
            elif place.url:
                # A part of another mirror's file may only be continued where the hash will tell.
                if tried and not place.sha256:
                    (partial / f"{place.file_name}.part").unlink(missing_ok=True)
                download(place.url, partial / place.file_name, place.sha256)
            else:
                expected = place.name or ", ".join(model.needs)
                tried.append(f"by hand: {place.manual} -> python -m ldm.registry register {name} {expected}")
                continue
            return settle(model, partial)
        except ValueError as error:
            tried.append(str(error))
            log.info("%s", error)
    raise ValueError(f"{folder}: no source worked: " + "; ".join(tried))


def pull_hub(place: Source, folder: Path) -> None:
    """Files of a hub repository; token, endpoint and offline mode are the hub library's own."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(place.hub, allow_patterns=list(place.files) or None, local_dir=folder)
    except Exception as error:  # whatever a mirror fails with, the next one is tried
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"hub {place.hub}: {lines[0][:200]}") from error


def copy_offline(model: Model, offline: Path, partial: Path) -> None:
    """A model from a folder of downloads: its own folder there, or its files."""
    if not offline.is_dir():
        raise ValueError(f"{offline}: no such folder")
    source = offline / model.folder if (offline / model.folder).is_dir() else offline
    found = {path for pattern in model.needs for path in source.glob(pattern) if path.is_file()}
    if source != offline:
        found = {path for path in source.rglob("*") if path.is_file()}
    for path in sorted(found):
        target = partial / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    wanted = {place.file_name: place.sha256 for place in model.places if place.sha256}
    for name, sha256 in wanted.items():
        if (partial / name).is_file() and file_sha256(partial / name) != sha256:
            (partial / name).replace(partial / (name + ".wrong"))
            raise ValueError(f"{offline}/{name}: wrong SHA-256; a copy is kept in {partial}")


def register_file(model: Model, path: Path) -> Path:
    """A file that a person fetched: unpacked or copied, hashed, put in place."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    known = {place.sha256 for place in model.places if place.sha256}
    if known and file_sha256(path) not in known and not is_archive(path):
        raise ValueError(f"{path}: SHA-256 is {file_sha256(path)}, expected {' or '.join(sorted(known))}")
    partial = folder_of(model).with_name(folder_of(model).name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if is_archive(path):
        unpack(path, partial)
    else:
        shutil.copyfile(path, partial / path.name)
    return settle(model, partial)


def settle(model: Model, partial: Path) -> Path:
    """Check that a model is whole, record its hashes, and give it its name."""
    missing = lacks(model, partial)
    if missing:
        raise ValueError(f"{partial}: incomplete: no file matches {', '.join(missing)}")
    (partial / HASHES).write_text(json.dumps(hashes_of(partial), indent=1) + "\n")
    folder = folder_of(model)
    if folder.exists():  # incomplete, otherwise nothing would have been fetched
        shutil.rmtree(folder.with_name(folder.name + ".old"), ignore_errors=True)
        folder.rename(folder.with_name(folder.name + ".old"))
    partial.rename(folder)
    log.info("%s is complete%s", folder, f"; next: {model.then}" if model.then else "")
    return folder


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, less hidden ones and leftovers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder): path for path in files}
    skipped = (".part", ".wrong")
    return {
        name.as_posix(): file_sha256(path)
        for name, path in names.items()
        if name.name != HASHES and not name.name.endswith(skipped) and not name.parts[0].startswith(".")
    }


def changed(model: Model) -> list[str]:
    """Files that are missing or differ from the recorded hashes."""
    folder = folder_of(model)
    if not (folder / HASHES).is_file():
        raise ValueError(f"{folder}: no {HASHES}, so there is nothing to compare with; pull or register it")
    recorded = json.loads((folder / HASHES).read_text())
    found = hashes_of(folder)
    return [name for name, value in recorded.items() if found.get(name) != value]


def list_models() -> None:
    """All models: present or not, size, what they are."""
    for name, model in load_registry().items():
        state = "missing" if lacks(model) else "present"
        typer.echo(f"{state:8} {name:26} {model.size_gb:6.1f} GB  {model.about}")


def show(name: Annotated[str, typer.Argument(help="model")]) -> None:
    """Everything known of a model."""
    model = find(name, load_registry())
    typer.echo(f"{name}: {model.about}\nlicence: {model.licence}\nsize: {model.size_gb} GB")
    typer.echo(f"used by: {', '.join(model.used_by)}\nfolder: {folder_of(model)}")
    for place in model.places:
        typer.echo(
            f"source: {place.hub or place.url or 'by hand: ' + place.manual} {place.file_name}".rstrip()
        )
    if model.then:
        typer.echo(f"then: {model.then}")


def where(name: Annotated[str, typer.Argument(help="model")]) -> None:
    """The folder of a model."""
    typer.echo(folder_of(find(name, load_registry())).as_posix())


def pull(
    name: Annotated[str, typer.Argument(help="model")],
    offline: Annotated[Path | None, typer.Option("--from", help="folder of files fetched elsewhere")] = None,
) -> None:
    """Download a model, or copy it from a folder; continues what was interrupted."""
    pull_model(name, find(name, load_registry()), offline)


def register(
    name: Annotated[str, typer.Argument(help="model")],
    file: Annotated[Path, typer.Argument(help="weight file, or zip or tar archive")],
) -> None:
    """Put a file that was fetched by hand in its place."""
    register_file(find(name, load_registry()), file)


def verify(name: Annotated[str, typer.Argument(help="model; default: all that are present")] = "") -> None:
    """Compare the files with the recorded hashes."""
    registry = load_registry()
    chosen = (
        [name] if name else [one for one, model in registry.items() if (folder_of(model) / HASHES).exists()]
    )
    for one in chosen:
        wrong = changed(find(one, registry))
        if wrong:
            raise ValueError(f"{one}: differs from what was pulled: {', '.join(wrong)}")
        typer.echo(f"{one}: unchanged")


def build_app() -> typer.Typer:
    app = new_app("Models: what there is, where it comes from, where it lies.")
    app.command("list")(list_models)
    for verb in (show, where, pull, register, verify):
        app.command(verb.__name__)(verb)
    return app


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_app(build_app, sys.argv[1:]))
