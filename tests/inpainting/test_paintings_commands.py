"""The data commands of the paper's README, character for character, on eight synthetic paintings."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from inpainting.data import dci_ops, downloader, ops
from inpainting.data import eval as judge
from inpainting.data.steps import texts as captions_module
from ldm.settings.cli import run_app
from tests.inpainting.painting_set import PAINTINGS, REGIONS, PaintingSet, tree, write_set
from tests.ldm.small_mllm import small_folder
from tests.loopback import Server, serving
from tiny.world import make_tokenizer

PROGRAMS: dict[str, Callable] = {
    f"inpainting.data.{name}": program.build_app
    for name, program in (("ops", ops), ("dci_ops", dci_ops), ("downloader", downloader), ("eval", judge))
}
DOWNLOAD = (
    "python -m inpainting.data.downloader download-and-save-images-wikiart-v2 -o data/mm_inp_dataset/images"
)
BEFORE_CAPTIONS = """\
python -m inpainting.data.ops make-masks-dataset --annotations-path data/annotations.json --image-dir data/mm_inp_dataset/images --out-dir data/mm_inp_dataset/masks
python -m inpainting.data.ops make-entities-dataset --annotations-path data/annotations.json --image-dir data/mm_inp_dataset/images --out-dir data/mm_inp_dataset/entities
python -m inpainting.data.ops extract-noun-chunk-roots --entities-dir data/mm_inp_dataset/entities
"""  # noqa: E501
CAPTION = "python -m inpainting.data.ops caption-masks --entities-dir data/mm_inp_dataset/entities --model-id llava-hf/llava-v1.6-vicuna-13b-hf --batch-size 8 --max-new-tokens 40 --num-processes 1 --process-id 0"  # noqa: E501
TO_FOLDER = "python -m inpainting.data.ops llava-annotations-to-folder --annotations-path data/llava.json --out-dir data/mm_inp_dataset/entities"  # noqa: E501
TO_FOLDER_OWN = "python -m inpainting.data.ops llava-annotations-to-folder --annotations-path backup_0_final.json --out-dir data/mm_inp_dataset/entities"  # noqa: E501
AFTER_CAPTIONS = """\
python -m inpainting.data.ops llava-annotations-to-entity-annotations --entities-dir data/mm_inp_dataset/entities
python -m inpainting.data.ops train-val-test-split --image-dir data/mm_inp_dataset/images --masks-dir data/mm_inp_dataset/masks --split-df-path data/wikiart_images.csv
"""  # noqa: E501
DCI = """\
python -m inpainting.data.dci_ops make-masks-dataset --annotations-dir annotations --image-dir images --out-dir masks
python -m inpainting.data.dci_ops make-entities-dataset --annotations-dir annotations --image-dir images --out-dir entities
python -m inpainting.data.dci_ops to-lowercase --entities-dir entities
python -m inpainting.data.ops extract-noun-chunk-roots --entities-dir entities
python -m inpainting.data.dci_ops train-val-test-split --annotations-dir annotations --image-dir images --split-path split.json
"""  # noqa: E501
JUDGE = """\
python -m inpainting.data.eval evaluate-global --annotations-path data/annotations.json --images-dir data/mm_inp_dataset/images
python -m inpainting.data.eval evaluate-local --entities-dir data/mm_inp_dataset/entities
"""  # noqa: E501


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small models under the hub names of the published commands, found as relative folders."""
    folder = tmp_path_factory.mktemp("hub")
    small_folder("llava_next", folder / "llava-hf/llava-v1.6-vicuna-13b-hf")
    clip = folder / "openai/clip-vit-base-patch32"
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text = {**layers, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        vision = {**layers, "image_size": 32, "patch_size": 8}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    model.save_pretrained(clip)
    tokenizer.save_pretrained(clip)
    return folder


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield from serving(monkeypatch)


@pytest.fixture
def made(tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch) -> PaintingSet:
    """The set; the working folder is its root, which holds the models under their published names too."""
    made = write_set(tmp_path)
    for owner in hub.iterdir():
        (tmp_path / owner.name).symlink_to(owner)
    monkeypatch.chdir(tmp_path)
    return made


def type_in(lines: str) -> None:
    """Run commands as they are typed, in this process."""
    for line in lines.strip().splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"], line
        assert run_app(PROGRAMS[words[2]], words[3:]) == 0, line


def check_set(made: PaintingSet) -> None:
    placed = {path.stem: path.parent.name for path in made.images.glob("*/*.jpg")}
    assert len(placed) == len(PAINTINGS)
    assert placed["fritz_empty"] == "unannotated"
    for stem, count in REGIONS.items():
        document = json.loads((made.out / "entities" / stem / "annotations.json").read_text())
        assert len(document) == count
        assert all(set(one) == {"concept", "noun_chunk_root", "caption"} for one in document.values())


def test_the_published_order_with_the_authors_captions(made: PaintingSet) -> None:
    type_in(BEFORE_CAPTIONS + TO_FOLDER + "\n" + AFTER_CAPTIONS)
    check_set(made)
    build = made.root / "built"
    type_in(f"python -m inpainting.data.ops build --out-dir {build}")
    without = {name: data for name, data in tree(build).items() if "stamp" not in name}
    typed = {name: data for name, data in tree(made.out).items() if "stamp" not in name}
    assert without == {
        name: data for name, data in typed.items() if name.count("/") > 1 or "images" not in name
    }


def test_build_draws_a_split_without_a_table(made: PaintingSet, capsys: pytest.CaptureFixture[str]) -> None:
    made.table.unlink()
    assert "wikiart_images.csv does not exist" in refused(capsys, "python -m inpainting.data.ops build")
    type_in(
        "python -m inpainting.data.ops build --split-df-path none --val-size 2 --test-size 2 --mode symlink"
    )
    counts = Counter(path.parent.name for path in made.images.glob("*/*.jpg"))
    assert counts == {"train": len(REGIONS) - 4, "val": 2, "test": 2, "unannotated": 1}


def test_the_published_order_with_own_captions(made: PaintingSet) -> None:
    type_in("\n".join([BEFORE_CAPTIONS + CAPTION, TO_FOLDER_OWN, AFTER_CAPTIONS]))
    check_set(made)
    raw = captions_module.read_captions(Path("backup_0_final.json"))
    document = json.loads((made.out / "entities/hugo_village/annotations.json").read_text())
    assert document["mask_0"]["caption"] == captions_module.clean_caption(raw["hugo_village"]["mask_0"])


def test_download_as_published(made: PaintingSet, address: str) -> None:
    sent = {path.name: path.read_bytes() for path in made.images.iterdir()}
    Server.files.update({f"/{name}!Large.jpg": data for name, data in sent.items()})
    made.table.write_text(made.table.read_text().replace("http://127.0.0.1:9", address))
    for path in made.images.iterdir():
        path.unlink()
    type_in(DOWNLOAD)
    assert {path.name for path in made.images.iterdir()} == set(sent)
    type_in(DOWNLOAD.replace("-o", "--output_dir"))


def test_judging_as_published(made: PaintingSet, capsys: pytest.CaptureFixture[str]) -> None:
    type_in(BEFORE_CAPTIONS + TO_FOLDER + "\n" + AFTER_CAPTIONS)
    capsys.readouterr()
    type_in(JUDGE)
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 2
    assert all(line.startswith("Final score: ") for line in shown)
    whole, part = (float(line.partition(": ")[2]) for line in shown)
    assert -1 <= whole <= 1
    assert -1 <= part <= 1
    type_in(f"{JUDGE.splitlines()[1]} --batch-size 5 --out local.json")
    result = json.loads(Path("local.json").read_text())
    assert result["pairs"] == sum(REGIONS.values())
    assert result["mean_cosine"] == pytest.approx(part, abs=1e-4)
    assert result["low"] < result["mean_cosine"] < result["high"]
    assert result["backbone"] == "openai/clip-vit-base-patch32"


def test_judging_pairs_each_image_with_its_own_text(made: PaintingSet) -> None:
    """A text of another form and a damaged image are left out of both lists, never of one."""
    type_in(BEFORE_CAPTIONS + TO_FOLDER + "\n" + AFTER_CAPTIONS)

    def damage(document: dict) -> None:
        document["anna-maria_bridge.jpg"]["description"] = "no mark"
        del document["carl_portrait.jpg"]["description"]

    made.edit(made.annotations, damage)
    (made.images / "train/hugo_village.jpg").write_bytes(b"")
    (made.images / "train/emil_wide-river.jpg").unlink()
    type_in(f"{JUDGE.splitlines()[0]} --out global.json --batch-size 1")
    result = json.loads(Path("global.json").read_text())
    assert set(result["left_out"]) == {"anna-maria_bridge.jpg", "carl_portrait.jpg", "hugo_village.jpg"}
    assert result["pairs"] == len(REGIONS) - 4  # the eighth image is unannotated


def refused(capsys: pytest.CaptureFixture[str], line: str) -> str:
    words = shlex.split(line)
    capsys.readouterr()
    assert run_app(PROGRAMS[words[2]], words[3:]) == 2
    return capsys.readouterr().err


def test_what_is_missing_is_named(made: PaintingSet, capsys: pytest.CaptureFixture[str]) -> None:
    made.annotations.unlink()
    made.captions.unlink()
    made.table.unlink()
    for line in [*BEFORE_CAPTIONS.splitlines()[:2], TO_FOLDER, AFTER_CAPTIONS.splitlines()[1], DOWNLOAD]:
        (made.out / "masks").mkdir(exist_ok=True)
        (made.out / "entities").mkdir(exist_ok=True)
        assert "fetch-annotations" in refused(capsys, line), line
    line = BEFORE_CAPTIONS.splitlines()[0].replace("--out-dir data/mm_inp_dataset/masks", "")
    assert "missing --out-dir" in refused(capsys, line)
    (made.out / "entities/a").mkdir(parents=True, exist_ok=True)
    (made.out / "entities/a/annotations.json").write_text('{"mask_0": {"concept": "a dog"}}')
    Image.new("RGB", (9, 9)).save(made.out / "entities/a/mask_0.png")
    unknown = CAPTION.replace("llava-hf/llava-v1.6-vicuna-13b-hf", "nowhere/model")
    assert "nowhere/model: no such folder" in refused(capsys, unknown)
    assert "--process-id / --num-processes must be i/n with 0 <= i < n, got '1/1'" in refused(
        capsys, CAPTION.replace("--process-id 0", "--process-id 1")
    )
    line = AFTER_CAPTIONS.splitlines()[1]
    assert "give one of --copy, --move and --symlink" in refused(capsys, f"{line} --move --symlink")


def write_dci(root: Path) -> None:
    """Four images with annotation files of Densely Captioned Images."""
    for folder in ("annotations", "images"):
        (root / folder).mkdir(parents=True)

    def entry(label: str, parent: int, box: tuple[int, int, int, int]) -> dict:
        bounds = {"topLeft": {"x": box[0], "y": box[1]}, "bottomRight": {"x": box[2], "y": box[3]}}
        return {"label": label, "caption": f"{label}, (very)\nNEAR.", "parent": parent, "bounds": bounds}

    for number, name in enumerate(("a", "b", "c", "d")):
        Image.new("RGB", (60, 40), (number, 9, 9)).save(root / f"images/{name}.jpg")
        masks = {
            "3": entry("A Dog", -1, (5, 5, 25, 35)),
            "7": entry("part", 3, (5, 5, 15, 15)),
            "11": entry("", -1, (5, 5, 15, 15)),
            "20": entry("Speck", -1, (0, 0, 4, 4)),
            "21": entry("Edge", -1, (40, 20, 70, 40)),
        }
        if name != "d":
            document = {"image": f"{name}.jpg", "mask_data": masks if name != "c" else [1]}
            (root / f"annotations/{name}.json").write_text(json.dumps(document))
    (root / "split.json").write_text(
        json.dumps({"train": ["a.json"], "valid": ["b.json"], "test": ["c.json"]})
    )


def test_densely_captioned_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dci(tmp_path)
    monkeypatch.chdir(tmp_path)
    type_in(DCI)
    assert {path.name for path in (tmp_path / "masks/a").iterdir()} == {"mask_3.png", "mask_21.png"}
    with Image.open(tmp_path / "masks/a/mask_3.png") as mask:
        wanted = np.zeros((40, 60), np.uint8)
        wanted[5:35, 5:25] = 255
        assert (np.asarray(mask) == wanted).all()
    with Image.open(tmp_path / "entities/b/mask_21.png") as crop:
        assert (crop.mode, crop.size) == ("RGB", (20, 20))  # cut to the image
    document = json.loads((tmp_path / "entities/a/annotations.json").read_text())
    assert document["mask_3"] == {"concept": "a dog", "caption": "a dog, very near", "noun_chunk_root": "dog"}
    assert not (tmp_path / "masks/c").exists()  # damaged: left out
    assert "no object `mask_data`" in (tmp_path / "masks/stamp_make-masks-dataset.jsonl").read_text()
    placed = {path.stem: path.parent.name for path in (tmp_path / "images").glob("*/*.jpg")}
    assert placed == {"a": "train", "b": "val", "c": "test", "d": "unannotated"}
    type_in(DCI.splitlines()[1])
    document = json.loads((tmp_path / "entities/a/annotations.json").read_text())
    assert document["mask_3"]["noun_chunk_root"] == "dog"
