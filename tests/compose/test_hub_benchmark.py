"""Data-set folders for the hub: the composite benchmark, and the scenes of the models' scores."""

import json

import pytest
import yaml
from huggingface_hub import DatasetCard

from compose.hub.export import SCENES, export_benchmark
from compose.hub.settings import BenchmarkHub, InpainterHub
from datasets.scenes import eval_seed


def test_a_former_folder_of_a_user_is_kept(tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "i" / "notes.txt").write_text("mine")
    (tmp_path / "m.json").write_text('{"format": 1, "name": "n", "seed": 0, "files": {}, "cases": []}')
    export_benchmark(BenchmarkHub(tmp_path / "i", tmp_path / "m.json"))
    assert (tmp_path / "i" / "eval.yaml").is_file()
    assert (tmp_path / "i.old1" / "notes.txt").read_text() == "mine"


def test_a_card_that_somebody_changed_is_kept_with_its_folder(tmp_path):
    (tmp_path / "m.json").write_text('{"format": 1, "name": "n", "seed": 0, "files": {}, "cases": []}')
    for _ in range(2):  # the same again leaves nothing beside it
        export_benchmark(BenchmarkHub(tmp_path / "out", tmp_path / "m.json"))
    assert not (tmp_path / "out.old1").exists()
    (tmp_path / "out" / "README.md").write_text("mine")
    export_benchmark(BenchmarkHub(tmp_path / "out", tmp_path / "m.json"))
    assert (tmp_path / "out.old1" / "README.md").read_text() == "mine"
    assert (tmp_path / "out" / "README.md").read_text().startswith("---")


def test_the_benchmark_is_a_data_set_with_its_tasks(tmp_path):
    case = {
        "id": "1_cat", "background": "1.jpg", "object": "cat", "view": "0.png", "relation": "behind",
        "anchor": {"name": "sofa", "annotation": 7, "box01_xyxy": [0.1, 0.2, 0.3, 0.4]},
        "box01_xyxy": [0.5, 0.5, 0.75, 0.75], "instruction": "Place the cat behind the sofa."}  # fmt: skip
    manifest = {"format": 1, "name": "dreambooth-coco-1x1", "seed": 0, "files": {}, "cases": [case]}
    (tmp_path / "m.json").write_text(json.dumps(manifest))
    export_benchmark(BenchmarkHub(tmp_path / "out", tmp_path / "m.json"))
    (row,) = (tmp_path / "out" / "test.jsonl").read_text().splitlines()
    assert json.loads(row) == case
    evaluation = yaml.safe_load((tmp_path / "out" / "eval.yaml").read_text())
    assert evaluation["name"] == "dreambooth-coco-1x1"
    assert {"id": "depth_order", "config": "default", "split": "test"} in evaluation["tasks"]
    assert {"id": "fid", "config": "default", "split": "test"} in evaluation["tasks"]
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.configs[0]["data_files"] == [{"split": "test", "path": "test.jsonl"}]
    assert "1 composites to make" in card.text
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize(
    ("repo", "title"), [("ME/bifrost-scenes", "ME/bifrost-scenes"), ("", "bifrost-scenes")]
)
def test_the_data_set_that_scores_name_is_written_too(tmp_path, repo, title):
    export_benchmark(BenchmarkHub(tmp_path / "out", repo=repo))
    evaluation = yaml.safe_load((tmp_path / "out" / "eval.yaml").read_text())
    tasks = {task["id"] for task in evaluation["tasks"]}
    assert tasks == {"psnr_visible_db", "ssim_visible", "colour", "shape", "both"}
    rows = [json.loads(line) for line in (tmp_path / "out" / "test.jsonl").read_text().splitlines()]
    assert evaluation["name"] == SCENES
    assert rows[3] == {"scene": 3, "seed": eval_seed(3)}
    assert len(rows) == 512
    card = DatasetCard.load(tmp_path / "out" / "README.md").text
    assert card.strip().startswith(f"# {title}")
    assert all(f"`{task}`" in card for task in tasks)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("repo", ["ME", "ME/", "/bifrost", "ME/my/bifrost"])
def test_a_name_on_the_hub_has_an_owner(tmp_path, repo):
    for make in (
        lambda: BenchmarkHub(tmp_path, repo=repo),
        lambda: InpainterHub(tmp_path, tmp_path, repo=repo),
    ):
        with pytest.raises(ValueError, match=f"repo must be OWNER/NAME, got '{repo}'"):
            make()
