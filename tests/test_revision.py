"""An earlier revision beside the present one: its own files, and nothing left of it."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.size import checked_out


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """Two commits of one file; the second one is checked out."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # a commit hook sets the repository that it runs in
    folder = tmp_path / "a repository"
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    for text in ("first", "second"):
        (folder / "text.txt").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-qm", text], check=True)
    return folder


def worktrees(repository: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], check=True, capture_output=True, text=True
    )
    return listed.stdout.splitlines()


@pytest.mark.parametrize("revision", ["HEAD~1", "HEAD~1^{commit}", "master~1"])
def test_the_files_are_those_of_the_revision_and_go_afterwards(repository: Path, revision: str) -> None:
    branch = (repository / ".git/HEAD").read_text().split("/")[-1].strip()
    with checked_out(revision.replace("master", branch), repository) as tree:
        assert (tree / "text.txt").read_text() == "first"
        assert (repository / "text.txt").read_text() == "second"
        (tree / "made.txt").write_text("by a measurement")
        assert len(worktrees(repository)) == 2
    assert not tree.exists()
    assert len(worktrees(repository)) == 1


def test_a_measurement_that_fails_leaves_nothing(repository: Path) -> None:
    with pytest.raises(KeyError), checked_out("HEAD~1", repository) as tree:
        raise KeyError
    assert not tree.exists()
    assert len(worktrees(repository)) == 1


@pytest.mark.parametrize("revision", ["HEAD~2", "8f05625", "nothing", "text.txt"])
def test_a_revision_that_is_not_there_is_refused_in_one_line(repository: Path, revision: str) -> None:
    words = f"revision {revision} of .*cannot be checked out"
    with pytest.raises(ValueError, match=words) as refused, checked_out(revision, repository):
        pytest.fail("worked")
    assert "\n" not in str(refused.value)
    assert "git fetch --unshallow" in str(refused.value)
    assert len(worktrees(repository)) == 1


@pytest.mark.parametrize("absent", ["git", "repository"])
def test_no_git_and_no_repository_are_refused_in_one_line(tmp_path: Path, monkeypatch, absent: str) -> None:
    if absent == "git":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(ValueError, match="cannot be checked out") as refused, checked_out("HEAD", tmp_path):
        pytest.fail("worked")
    assert "\n" not in str(refused.value)
