"""What lies in a model's folder: somebody's files stay, archives come without the folders around them."""

import shutil
from pathlib import Path

import pytest

from ldm.files import visible_files
from ldm.registry import pull
from ldm.registry.models import HASH_FILE
from ldm.registry.pull import changed, pull_model
from tests.ldm.test_registry import CONTENT, archive, model


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIFROST_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def fetched(file: Path, path: Path) -> None:
    """In place of a download."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, path)


@pytest.mark.parametrize(
    ("needs", "members", "found"),
    [
        ("w.pth", ["top/w.pth", "top/sub/readme"], {"w.pth", "sub/readme"}),
        ("w.pth", ["a/b/w.pth", "__MACOSX/a/._w.pth"], {"w.pth"}),
        ("top/*.pth", ["top/w.pth"], {"top/w.pth"}),
        ("checkpoint-*/w.pth", ["rca/checkpoint-9/w.pth", "rca/._x"], {"checkpoint-9/w.pth"}),
        ("w.pth", ["w.pth", "sub/w.pth"], {"w.pth", "sub/w.pth"}),
        ("w.pth", ["a/w.pth", "a/.gitattributes", "a/.git/HEAD", "a/sub/.x"], {"w.pth"}),
    ],
)
@pytest.mark.parametrize("way", ["register", "pull", "folder"])
def test_folders_around_an_archive_are_left_out(
    way: str,
    needs: str,
    members: list[str],
    found: set[str],
    root: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    file = archive(tmp_path / "a.zip", members)
    one = model({"url": "http://127.0.0.1:9/a.zip"}, needs=(needs,))
    monkeypatch.setattr(pull, "download", lambda url, path, sha256: fetched(file, path))
    sources = {"register": file, "pull": None, "folder": tmp_path}
    pull_model("thing", one, sources[way])
    visible = {path.relative_to(root / "thing").as_posix() for path in visible_files(root / "thing", "**/*")}
    assert visible == {HASH_FILE, *found}
    assert changed(one) == []
    assert [path.name for path in root.iterdir()] == ["thing"]
    pull_model("thing", one, file)  # nothing in the folder is anybody's, so it can be replaced


@pytest.mark.parametrize("name", ["a.zip", "A.ZIP", "a.tar.gz"])
@pytest.mark.parametrize("damage", ["cut", "changed", "encrypted"])
def test_damaged_archives_are_named(name: str, damage: str, root: Path, tmp_path: Path) -> None:
    file = archive(tmp_path / name, ["w.pth"])
    data = bytearray(file.read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    elif damage == "encrypted" and file.suffix.lower() == ".zip":
        data[6] |= 1  # both flags of the member
        data[data.index(b"PK\1\2") + 8] |= 1
    else:
        data[len(data) // 2] ^= 255
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}: not a readable archive") as caught:
        pull_model("thing", model(), file)
    assert "\n" not in str(caught.value)
    assert list(root.iterdir()) == []


def test_an_interrupted_unpacking_is_done_again(root: Path, tmp_path: Path, monkeypatch) -> None:
    file = archive(tmp_path / "a.zip", ["top/sub/w.pth", "top/sub/v.pth"])
    (root / "thing.partial/sub").mkdir(parents=True)
    (root / "thing.partial/sub/v.pth").write_bytes(b"half")
    monkeypatch.setattr(pull, "download", lambda url, path, sha256: fetched(file, path))
    pull_model("thing", model({"url": "http://127.0.0.1:9/a.zip"}, needs=("sub/w.pth",)))
    assert (root / "thing/sub/v.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "mine", ["w.pth", "notes.txt", "sub/notes.txt", ".git/HEAD", "sub/.notes", ".sha256.json/x"]
)
@pytest.mark.parametrize("way", ["register", "pull", "folder"])
def test_a_folder_of_somebody_is_left_alone(
    way: str, mine: str, root: Path, tmp_path: Path, monkeypatch
) -> None:
    """Before anything is fetched; also beside files that were pulled."""
    monkeypatch.setattr(pull, "download", lambda *_: pytest.fail("nothing is fetched"))
    one = model({"url": "http://127.0.0.1:9/w.pth"}, needs=("w.pth", "v.pth"))
    for path in (tmp_path / "stick/w.pth", tmp_path / "stick/v.pth", root / "thing" / mine):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    sources = {"register": tmp_path / "stick/w.pth", "pull": None, "folder": tmp_path / "stick"}
    with pytest.raises(
        ValueError, match=rf"thing: {mine} was not put there by pull or register; move it away"
    ):
        pull_model("thing", one, sources[way])
    assert [path.read_bytes() for path in root.rglob("*") if path.is_file()] == [b"mine"]


def test_a_link_to_a_folder_is_left_alone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    root.mkdir()
    (root / "thing").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "w.pth").write_bytes(CONTENT)
    with pytest.raises(ValueError, match="a link or a file was not put there"):
        pull_model("thing", model(), tmp_path / "w.pth")
    assert (root / "thing").is_symlink()


def test_registering_again_replaces_without_a_copy(root: Path, tmp_path: Path) -> None:
    for name in ("thing.old", "thing.partial"):  # of somebody, and of a download under way
        (root / name).mkdir(parents=True)
        (root / name / "w.pth").write_bytes(b"kept")
    for content in (b"first", b"second"):
        (tmp_path / "w.pth").write_bytes(content)
        pull_model("thing", model(), tmp_path / "w.pth")
        assert (root / "thing/w.pth").read_bytes() == content
        for beside in (".sha256.json", ".DS_Store", "._w.pth", ".cache/huggingface/w.lock"):  # no one's work
            (root / "thing" / beside).parent.mkdir(parents=True, exist_ok=True)
            (root / "thing" / beside).write_text("{}")
    assert sorted(path.name for path in root.iterdir()) == ["thing", "thing.old", "thing.partial"]
    (tmp_path / "other.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"other.pth: incomplete: no file matches w.pth"):
        pull_model("thing", model(), tmp_path / "other.pth")
    assert (root / "thing/w.pth").read_bytes() == b"second"
    assert sorted(path.name for path in root.iterdir()) == ["thing", "thing.old", "thing.partial"]
