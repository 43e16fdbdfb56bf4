"""Measured images on the disk, so that an interrupted measurement goes on, and a second one is free.

    FOLDER/NAME.npz    features, and the numbers as JSON with the key of what they were measured on
A row counts only for the same image, the same regions and the same networks.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inpainting.models.metrics.measure import Row
from ldm.files import file_sha256, write_atomic

VERSION = 1  # of what `measure` computes


@dataclass(frozen=True)
class RowStore:
    """Rows of one run. facts: what all of them depend on, such as the hashes of the networks."""

    folder: Path
    facts: Mapping[str, Any]

    def key(self, image: Path, about: Any) -> str:
        """What a row was measured on. about: more that it depends on, such as the names of its regions."""
        text = json.dumps([VERSION, self.facts, file_sha256(image), about], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, stem: str, key: str) -> Row | None:
        """The row of an image, or None where there is none for this key."""
        path = self.folder / f"{stem}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                features = {name.removeprefix("f_"): stored[name] for name in stored.files if name != "about"}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if about.pop("key", None) != key:
            return None
        return Row(stem, **about, features=features)

    def write(self, row: Row, key: str) -> None:
        """Keep a row, as a whole or not at all."""
        about = {"key": key, "regions": row.regions, "pixels": row.pixels, "numbers": row.numbers}
        about["masked_pixels"] = row.masked_pixels
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"f_{name}": value for name, value in row.features.items()}
        np.savez(buffer, about=np.array(json.dumps(about)), **arrays)
        write_atomic(self.folder / f"{row.stem}.npz", buffer.getvalue())
