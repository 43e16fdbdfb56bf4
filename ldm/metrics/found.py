"""Networks that judge images: loaded from local files where they are there, skipped by name where not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ldm.metrics.weights import hash_of
from ldm.registry.models import resolve_model_path

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Found:
    """What was loaded. used: name -> file and hashes; skipped: name -> why."""

    used: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def get(self, name: str, path: Path, load: Callable[[Path], T]) -> T | None:
        """The network of a file or folder, or None, and the reason is kept."""
        path = resolve_model_path(path)
        try:
            network = load(path)
            self.used[name] = {"path": path.as_posix(), "sha256": hash_of(path)}
            return network
        except (ValueError, OSError) as error:
            self.skipped[name] = " ".join(str(error).split())
            log.warning("skipped: %s: %s", name, self.skipped[name])
            return None
