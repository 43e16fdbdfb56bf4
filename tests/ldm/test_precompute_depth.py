"""Depth maps of a tree: mirrored, 16 bits, resumable, in shards, whatever the batch; bad files are named."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from datasets.sources.readers import is_map_of
from ldm import precompute_depth
from ldm.images import read_depth, write_png
from ldm.locks import lock_beside
from ldm.settings.cli import run_app
from tests.images import room


@pytest.fixture
def tree(tmp_path, monkeypatch, small_depth_network):
    """Five images of three sizes in two folders; `run` calls the command on them."""
    monkeypatch.chdir(tmp_path)
    for k, (h, w) in enumerate([(40, 56), (40, 56), (64, 40), (33, 47), (40, 56)]):
        write_png(tmp_path / f"in/{'ab'[k % 2]}/{k}.png", room(h, w))
    assert small_depth_network.is_dir()

    def run(*extra: str) -> int:
        arguments = ["in", "out", "--model", str(small_depth_network), "--device", "cpu", *extra]
        return run_app(precompute_depth.build_app, arguments)

    return run


def maps(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def test_every_image_gets_a_16_bit_map_of_its_proportions(tree, tmp_path):
    write_png(tmp_path / "in/c/small.png", room(16, 20))
    assert tree() == 0
    assert maps(tmp_path / "out") == maps(tmp_path / "in")
    for name in maps(tmp_path / "in"):
        with Image.open(tmp_path / "out" / name) as depth, Image.open(tmp_path / "in" / name) as image:
            assert depth.mode == "I;16"
            assert is_map_of(depth.size[::-1], image.size[::-1])
            small = "small" in name  # the network sees 32 x 32 pixels of the others, or 32 x 64
            assert depth.size == image.size if small else 900 < depth.size[0] * depth.size[1] <= 2112
        values = read_depth(tmp_path / "out" / name)
        assert values.min() == 0
        assert values.max() == 1


def test_batch_and_shards_do_not_change_the_maps(tree, tmp_path):
    assert tree("--batch", "1") == 0
    one = {name: (tmp_path / "out" / name).read_bytes() for name in maps(tmp_path / "out")}
    (tmp_path / "out").rename(tmp_path / "first")
    assert tree("--batch", "3", "--shard", "0/2") == 0
    assert len(maps(tmp_path / "out")) == 3
    assert tree("--batch", "3", "--shard", "1/2") == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in one} == one
    (tmp_path / "out/b/1.png").unlink()  # whatever its company
    assert tree("--batch", "5") == 0
    assert (tmp_path / "out/b/1.png").read_bytes() == one["b/1.png"]


def test_an_interrupted_run_goes_on(tree, tmp_path, caplog):
    assert tree() == 0
    kept = tmp_path / "out/a/0.png"
    before = kept.stat().st_mtime_ns
    (tmp_path / "out/b/1.png").unlink()
    with caplog.at_level("INFO"):
        assert tree() == 0
    assert "1 written, 4 there already, 0 left out" in caplog.text
    assert kept.stat().st_mtime_ns == before
    lock = lock_beside(kept)
    lock.touch()  # as a kill between the last map and its lock
    assert tree() == 0
    assert not lock.exists()


def test_a_damaged_image_is_named_and_left_out(tree, tmp_path, caplog):
    (tmp_path / "in/a/9.jpg").write_bytes(b"\xff\xd8 no image")
    with caplog.at_level("INFO"):
        assert tree() == 0
    assert "9.jpg" in caplog.text
    assert "5 written, 0 there already, 1 left out" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "out"], "there is no folder none"),
        (["in", "in/depth"], "lies in in"),
        (["in", "out", "--shard", "2/2"], "shard must be i/n"),
        (["in", "out", "--suffix", ".gif"], "holds no images"),
        (["in", "out", "--batch", "0"], "batch must be at least 1"),
        (["in", "out", "--model", "nowhere"], "nowhere"),
    ],
)
def test_wrong_arguments_are_one_line(tree, capsys, arguments, message):
    assert run_app(precompute_depth.build_app, arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
    assert not Path("out").exists()


def test_two_images_for_one_map_are_refused_unless_a_kind_is_chosen(tree, tmp_path, capsys):
    Image.fromarray(room(40, 56)).save(tmp_path / "in/a/0.jpg")
    assert tree() == 2
    assert "0.jpg and 0.png would have one depth map" in capsys.readouterr().err
    assert tree("--suffix", ".jpg") == 0
    assert maps(tmp_path / "out") == ["a/0.png"]


def test_a_tree_of_another_network_is_not_continued(tree, tmp_path, capsys):
    assert tree() == 0
    record = tmp_path / "out" / precompute_depth.RECORD
    record.write_text(record.read_text().replace('safetensors": "', 'safetensors": "0'))
    for path in ("out/a/0.png", None):  # also where no map is missing
        assert tree() == 2
        assert "was made with" in capsys.readouterr().err
        (tmp_path / (path or "out/b/1.png")).unlink()
