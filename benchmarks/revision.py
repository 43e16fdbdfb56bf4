"""An earlier revision of this repository beside it, for measurements in pairs."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ldm.files import ROOT, first_line


@contextmanager
def checked_out(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """The folder of a git worktree of a revision, which is removed afterwards.

    ValueError in one line where git or the revision is missing, as in a shallow clone or an archive.
    """
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(repository), "worktree"]
        try:
            subprocess.run([*git, "add", "--detach", str(tree), revision], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or str(error).encode()
            raise ValueError(
                f"revision {revision} of {repository} cannot be checked out; a clone with its whole history "
                f"is needed (git fetch --unshallow): {first_line(ValueError(reason.decode()))}"
            ) from None
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True, capture_output=True)
