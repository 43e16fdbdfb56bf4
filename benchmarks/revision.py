"""An earlier revision of this repository beside it, for measurements in pairs."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ldm.files import ROOT


@contextmanager
def checked_out(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """A git worktree of a revision, for a while; ValueError where git or the revision is missing."""
    git = ["git", "-C", str(repository), "worktree"]
    with TemporaryDirectory() as tree:
        try:
            subprocess.run([*git, "add", "--detach", tree, revision], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", b"") or str(error).encode()).decode().strip().splitlines()[-1]
            what = "cannot be checked out; a clone with its whole history is needed (git fetch --unshallow)"
            raise ValueError(f"revision {revision} of {repository} {what}: {reason}") from None
        try:
            yield Path(tree)
        finally:
            subprocess.run([*git, "remove", "--force", tree], check=True, capture_output=True)
