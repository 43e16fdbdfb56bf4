"""Archives that come from elsewhere: unpacked only if every member stays inside the folder."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_archive(path: Path) -> bool:
    return path.name.endswith(ARCHIVES)


def unpack(path: Path, folder: Path) -> None:
    """Plain files and folders of an archive into `folder`; links and paths that lead outside are refused."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    link = (info.external_attr >> 16) & 0o170000 == 0o120000
                    _require_inside(path, info.filename, plain=not link)
                archive.extractall(folder)
            return
        with tarfile.open(path) as bundle:
            for member in bundle:
                _require_inside(path, member.name, plain=member.isfile() or member.isdir())
            bundle.extractall(folder, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path}: not a readable archive ({error})") from None


def _require_inside(path: Path, name: str, plain: bool) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name or not plain:
        raise ValueError(f"{path}: refused: its member {name!r} is a link or leads out of the folder")
