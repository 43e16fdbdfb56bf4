"""Models are fetched into a folder beside their own, which is renamed when whole; hashes are recorded."""

import logging
import shutil
from pathlib import Path

from ldm.files import file_sha256, read_json, write_json
from ldm.registry.download import download, is_archive, unpack
from ldm.registry.models import UNFINISHED, Model, folder_of, hub_files, missing_files

log = logging.getLogger(__name__)

HASH_FILE = "hashes.json"


def pull_model(name: str, model: Model, offline: Path | None = None) -> Path:
    """Get a model from the first source that works; returns its folder. ValueError lists what was tried.

    offline: a folder of downloads that is used instead; it holds the model's own folder, or its files
    """
    folder = folder_of(model)
    if not missing_files(model):
        log.info("%s is there", folder)
        return folder
    partial = folder.with_name(folder.name + ".partial")
    tried: list[str] = []
    if offline is not None:
        if not offline.is_dir():
            raise ValueError(f"{offline}: no such folder")
        source = offline / model.folder if (offline / model.folder).is_dir() else offline
        patterns = model.needs if source == offline else ("**/*",)
        for path in sorted({path for pattern in patterns for path in source.glob(pattern) if path.is_file()}):
            target = partial / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        for name, sha256 in {place.file_name: place.sha256 for place in model.places if place.sha256}.items():
            if (partial / name).is_file() and file_sha256(partial / name) != sha256:
                (partial / name).replace(partial / (name + ".wrong"))
                raise ValueError(f"{offline}/{name}: wrong SHA-256; a copy is kept in {partial}")
        return finalize_download(model, partial)
    for place in model.places:
        try:
            if place.hub:
                hub_files(place.hub, allow_patterns=list(place.files) or None, local_dir=partial)
            elif place.url:
                # A part of another mirror's file may only be continued where the hash will tell.
                if tried and not place.sha256:
                    (partial / f"{place.file_name}.part").unlink(missing_ok=True)
                download(place.url, partial / place.file_name, place.sha256)
            else:
                expected = place.name or ", ".join(model.needs)
                tried.append(f"by hand: {place.manual} -> python -m ldm.registry register {name} {expected}")
                continue
            return finalize_download(model, partial)
        except ValueError as error:
            tried.append(str(error))
            log.info("%s", error)
    raise ValueError(f"{folder}: no source worked: " + "; ".join(tried))


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
    return finalize_download(model, partial)


def finalize_download(model: Model, partial: Path) -> Path:
    """Check that a model is whole, record its hashes, and give it its name."""
    missing = missing_files(model, partial)
    if missing:
        raise ValueError(f"{partial}: incomplete: no file matches {', '.join(missing)}")
    write_json(partial / HASH_FILE, hashes_of(partial))
    folder = folder_of(model)
    if folder.exists():  # incomplete, otherwise nothing would have been fetched
        shutil.rmtree(folder.with_name(folder.name + ".old"), ignore_errors=True)
        folder.rename(folder.with_name(folder.name + ".old"))
    partial.rename(folder)
    log.info("%s is complete%s", folder, f"; next: {model.then}" if model.then else "")
    return folder


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, less hidden ones and leftovers."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        skipped = name.name == HASH_FILE or name.suffix in UNFINISHED or name.parts[0].startswith(".")
        if path.is_file() and not skipped:
            hashes[name.as_posix()] = file_sha256(path)
    return hashes


def changed(model: Model) -> list[str]:
    """Files that are missing or differ from the recorded hashes."""
    folder = folder_of(model)
    if not (folder / HASH_FILE).is_file():
        raise ValueError(f"{folder}: no {HASH_FILE}, so there is nothing to compare with; pull it first")
    found = hashes_of(folder)
    return [name for name, value in read_json(folder / HASH_FILE).items() if found.get(name) != value]
