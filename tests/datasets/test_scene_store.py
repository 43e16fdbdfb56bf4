"""Shards of rendered scenes: what is written is read back, and an interrupted run continues."""

import dataclasses
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from datasets.scenes import eval_seed, render, sample_scene, store
from datasets.scenes.__main__ import build_app
from datasets.scenes.settings import SheetSettings, StoreSettings
from datasets.scenes.store import OpenShard, read_shard, render_shards, write_scene_sheet
from ldm.images import read_image
from ldm.locks import held
from ldm.settings.choices import shard_of
from ldm.settings.cli import run_app


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoreSettings:
    monkeypatch.setattr(store, "SCENES_PER_SHARD", 2)
    return StoreSettings(size=(32, 32), reference_size=(24, 24), out=tmp_path, count=5, split="eval")


def test_shards_hold_what_was_rendered(settings: StoreSettings) -> None:
    paths = render_shards(settings)
    assert [path.name for path in paths] == [f"shard-{j:05d}.safetensors" for j in range(3)]
    shard = read_shard(paths[1])
    batch = render([sample_scene(eval_seed(i), settings) for i in (2, 3)], settings)
    assert shard.facts == batch.facts
    assert np.array_equal(shard.amodal, batch.amodal.numpy())
    assert np.array_equal(shard.reference_mask, batch.reference_mask.numpy())
    assert np.array_equal(shard.instances_u8, batch.instances.numpy())
    assert np.abs(store.depth_01(shard.depth_u16) - batch.depth_01.numpy()).max() < 1e-5
    assert np.abs(shard.image_u8 / 255 - batch.image_01.permute(0, 2, 3, 1).numpy()).max() < 0.5 / 255 + 1e-6
    assert len(read_shard(paths[2]).facts) == 1


def test_single_scenes_are_read_from_the_file_also_by_another_process(settings: StoreSettings) -> None:
    path = render_shards(settings)[0]
    whole, opened = read_shard(path), OpenShard(path)
    for shard in (opened, pickle.loads(pickle.dumps(opened))):
        assert shard.facts == whole.facts
        for field in dataclasses.fields(whole):
            if field.name != "facts":
                stored = getattr(whole, field.name)
                assert np.array_equal(shard.array(field.name, 1), stored[1])
                assert np.array_equal(shard.array(field.name, slice(1, 2)), stored[1:2])
    assert len(pickle.dumps(opened)) < path.stat().st_size / 2  # no images


def test_a_damaged_shard_is_rendered_again_and_a_good_one_kept(settings: StoreSettings) -> None:
    paths = render_shards(settings)
    whole = [path.read_bytes() for path in paths]
    kept = paths[0].stat().st_mtime_ns
    paths[1].write_bytes(whole[1][: len(whole[1]) // 2])
    paths[2].unlink()
    with pytest.raises(ValueError, match="not a complete shard"):
        read_shard(paths[1])
    assert render_shards(settings) == paths
    assert [path.read_bytes() for path in paths] == whole
    assert paths[0].stat().st_mtime_ns == kept


def test_shards_of_other_settings_are_not_mixed(settings: StoreSettings) -> None:
    render_shards(settings)
    with pytest.raises(ValueError, match="other settings"):
        render_shards(dataclasses.replace(settings, furniture=0.0))


def test_parts_of_the_work_make_the_whole(settings: StoreSettings) -> None:
    parts = [render_shards(dataclasses.replace(settings, shard=f"{i}/2")) for i in (0, 1)]
    assert [len(part) for part in parts] == [2, 1]
    assert sorted(parts[0] + parts[1]) == render_shards(settings)


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/2", "0/0"])
def test_a_wrong_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="i/n"):
        shard_of(text)


def test_the_sheet_shows_one_row_per_scene(tmp_path: Path) -> None:
    settings = SheetSettings(size=(48, 48), supersample=1, out=tmp_path / "sheet.png", count=2)
    rgb_u8 = read_image(write_scene_sheet(settings)).rgb_u8
    assert rgb_u8.shape[0] > 2 * 48
    assert rgb_u8.shape[1] > 6 * 48


def test_the_command_refuses_nonsense_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scenes"
    assert run_app(build_app, ["render", "--out", str(out), "--window", "box"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not out.exists()


class Killed(BaseException):
    pass


def stopping_after(count: int) -> tuple[list[int], store.Sampler]:
    """The seeds that were sampled, and a sampler that ends the run after so many."""
    seeds: list[int] = []

    def sample(seed: int, options: StoreSettings) -> store.Scene:
        if len(seeds) == count:
            raise Killed
        seeds.append(seed)
        return sample_scene(seed, options)

    return seeds, sample


def test_a_kill_loses_no_more_than_the_scene_it_was_at(settings: StoreSettings, monkeypatch) -> None:
    monkeypatch.setattr(store, "SCENES_PER_SHARD", 4)
    whole = [
        path.read_bytes() for path in render_shards(dataclasses.replace(settings, out=settings.out / "w"))
    ]
    monkeypatch.setattr(store, "PART_S", -1.0)  # a part after every scene
    given, rendered = dataclasses.replace(settings, out=settings.out / "p"), []
    for _ in range(4):
        seeds, sample = stopping_after(1)
        with pytest.raises(Killed):
            render_shards(given, sample)
        rendered += seeds
    assert rendered == [eval_seed(index) for index in range(4)]
    paths = render_shards(given)
    assert [path.read_bytes() for path in paths] == whole
    (given.out / ".shard-00001.000.part").write_bytes(b"of a kill after the shard was written")
    assert render_shards(given) == paths == sorted(given.out.iterdir())


def test_parts_of_other_settings_are_not_mixed_in(settings: StoreSettings, monkeypatch) -> None:
    monkeypatch.setattr(store, "PART_S", -1.0)
    with pytest.raises(Killed):
        render_shards(dataclasses.replace(settings, furniture=0.0), stopping_after(1)[1])
    part = settings.out / ".shard-00000.000.part"
    before = part.read_bytes()
    whole = render_shards(dataclasses.replace(settings, out=settings.out / "whole"))[0].read_bytes()
    assert render_shards(settings)[0].read_bytes() == whole
    assert len(before) > 1000
    assert not part.exists()


def test_a_second_process_renders_other_shards(settings: StoreSettings) -> None:
    seeds, sample = stopping_after(9)
    with ThreadPoolExecutor(1) as pool, held(settings.out / ".shard-00000.safetensors.lock"):
        second = pool.submit(render_shards, settings, sample)
        while not second.done() and not (settings.out / "shard-00002.safetensors").exists():
            time.sleep(0.01)
        assert [path.name for path in sorted(settings.out.glob("shard*"))] == [
            "shard-00001.safetensors", "shard-00002.safetensors"]  # fmt: skip
        assert not second.done()  # it waits for the first
    assert second.result() == sorted(settings.out.glob("shard*"))
    assert seeds == [eval_seed(index) for index in (2, 3, 4, 0, 1)]
