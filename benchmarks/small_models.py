"""Random networks of published kinds, a few hundred thousand weights each, in their publishers' folders; and
the other inputs of the commands of the campaign: jobs, images and paintings, the same at every call.
"""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hub
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cldm.config import CompositorSettings
from cldm.convert.convert import convert_compositor
from cldm.training.settings import RunConfig
from ldm.checkpoints import drawing
from ldm.files import read_json, write_json
from ldm.settings.cli import command, single_app
from ldm.settings.config import load_config
from tiny.world import make_tokenizer

LAYERS = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PROMPTER = "assets/tiny/prompter"
ROOMS = sorted(Path("assets/examples").glob("*/room.png"))
EXAMPLES = ROOMS[:2]
PAINTINGS = 8


def save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    words = make_tokenizer()
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = hub.CLIPTextConfig(vocab_size=len(words), hidden_size=16, **ids, **LAYERS)
    vision = hub.CLIPVisionConfig(image_size=32, patch_size=8, hidden_size=16, **LAYERS)
    parts = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    with drawing(0):
        return save(folder, hub.CLIPModel(hub.CLIPConfig(**parts, projection_dim=16)), words)


def write_kosmos(folder: Path, words: Any = None) -> Path:
    """Kosmos-2 and its real processor. words: another tokenizer"""
    words, size = words or make_tokenizer(), {"height": 28, "width": 28}
    images = CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False)
    processor = hub.Kosmos2Processor(images, words)  # which adds words
    text = {"embed_dim": 32, "layers": 2, "ffn_dim": 48, "attention_heads": 2, "init_std": 0.2}
    text |= {"vocab_size": len(words), "max_position_embeddings": 512}
    text |= {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    vision = {"hidden_size": 32, "image_size": 28, "patch_size": 14, **LAYERS}
    config = hub.Kosmos2Config(text_config=text, vision_config=vision)
    with drawing(0):
        return save(folder, hub.Kosmos2ForConditionalGeneration(config).eval(), processor)


def write_coco(folder: Path) -> None:
    """The rooms of the examples, and what stands in them as instances."""
    (w, h), facts = (128, 96), dict[str, list[dict[str, Any]]](images=[], annotations=[], categories=[])
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    for number, room in enumerate(ROOMS):
        name = f"{room.parent.name}.png"
        for kind, file in (("images", room), ("depth", room.with_name("room_depth.png"))):
            Image.open(file).resize((w, h), Image.Resampling.NEAREST).save(folder / kind / name)
        facts["images"].append({"id": number, "file_name": name, "height": h, "width": w})
        for noun, place in read_json(room.with_name("anchors.json")).items():
            x0, y0, x1, y1 = (round(edge * side) for edge, side in zip(place["box"], (w, h) * 2, strict=True))
            ids = {"id": len(facts["annotations"]), "image_id": number, "category_id": noun, "iscrowd": 0}
            outline = {"segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]], "area": (x1 - x0) * (y1 - y0)}
            facts["annotations"].append({**ids, **outline, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    nouns = dict.fromkeys(item["category_id"] for item in facts["annotations"])
    facts["categories"] = [{"id": noun, "name": noun} for noun in nouns]
    write_json(folder / "instances.json", facts)


def write_data(data: Path, web: str) -> None:
    """Two lists of jobs (the same names, other seeds and boxes), images, paintings, an archive."""
    rng = np.random.default_rng(0)
    noise: Callable[..., Any] = lambda h, w: Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))  # noqa: E731
    for folder in ("images", "paintings", "backgrounds"):
        (data / folder).mkdir(parents=True)
    networks = {"model": f"{data}/compositor/model", "num_samples": 2}
    for name, seed, box in (("jobs", 1, [0.3, 0.3, 0.7, 0.8]), ("older", 5, [0.1, 0.3, 0.5, 0.8])):
        lines = [
            {"name": room.parent.name, "background": str(room), "object": str(room.with_name("object.png")),
             "background_depth": str(room.with_name("room_depth.png")), "box": box, "seed": seed, **networks}
            for room in EXAMPLES]  # fmt: skip
        (data / f"compositor_{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    home, model = EXAMPLES[0].parent.resolve(), str((data / "compositor/model").resolve())
    names = {"background": "room.png", "background_depth": "room_depth.png", "anchors": "anchors.json"}
    job = {key: str(home / name) for key, name in names.items()} | {"model": model, "locator": "geometric"}
    layers = [{"object": str(home / "object.png"), "box": box}, {"erase": "checkered orange torus"}]
    write_json(data / "job.json", {**job, "layers": layers})
    question = "Place a red sphere to the left of the checkered orange torus."
    rooms = [str(room.resolve()) for room in EXAMPLES] * 6
    asked = [{"id": f"{n}", "image": room, "instruction": question} for n, room in enumerate(rooms)]
    (data / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 20:44] = 255
    for number, room in enumerate(EXAMPLES):
        (data / "objects" / f"toy{number}").mkdir(parents=True)
        cutout = np.dstack([np.asarray(noise(64, 64)), mask])
        Image.fromarray(cutout).save(data / "objects" / f"toy{number}" / "0.png")
        Image.open(room).resize((64, 64)).save(data / "backgrounds" / f"{number}_GT.png")
        Image.fromarray(mask).save(data / "backgrounds" / f"{number}_mask.png")
    for number in range(16):
        noise(48, 64).save(data / "images" / f"{number}.png")
    shutil.make_archive(str(data / "network"), "zip", "assets/tiny/depth")
    boxes = {"a red boat": [0.1, 0.1, 0.5, 0.6], "a tree": [0.6, 0.4, 0.9, 0.9]}
    entities = {phrase: {"startend": [0, 1], "bboxes": [box]} for phrase, box in boxes.items()}
    stems = [f"painting_{number}" for number in range(PAINTINGS)]
    for stem in stems:
        noise(64, 80).save(data / "paintings" / f"{stem}.jpg")
    captions = {f"mask_{j}": f"The image shows {phrase}." for j, phrase in enumerate(boxes)}
    described = {f"{stem}.jpg": {"description": "Answer: It shows", "entities": entities} for stem in stems}
    write_json(data / "raw" / "annotations.json", described)
    write_json(data / "raw" / "llava.json", dict.fromkeys(stems, captions))
    shutil.make_archive(str(data / "data" / "annotations"), "zip", data / "raw")
    splits = zip(described, ["val", *["test"] * 3, *["train"] * (PAINTINGS - 4)], strict=True)
    rows = [[name, f"{web}/paintings/{name}", "", split] for name, split in splits]
    with (data / "data" / "wikiart_images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file_name", "url", "modifier", "split"], *rows])
    write_coco(data / "coco")
    write_clip(data / "clip")
    write_kosmos(data / "kosmos")
    # The small prompt writer with a tokenizer that knows letters.
    processor, words = hub.AutoProcessor.from_pretrained(PROMPTER), make_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor.tokenizer = words
    writer = hub.LlavaForConditionalGeneration.from_pretrained(PROMPTER)
    writer.config.image_token_index = words.convert_tokens_to_ids("<image>")
    with drawing(0):
        writer.resize_token_embeddings(len(words))
    save(data / "llava", writer, processor)


def convert(settings: CompositorSettings) -> dict[str, Any]:
    """`cldm.convert bifrost` for a file of the small networks whose training lies beside it."""
    config = load_config(RunConfig, settings.source.with_name("released") / "config.yaml", [])
    return convert_compositor("bifrost", settings, config.network)


build_convert_app = single_app(command(CompositorSettings, convert), bare=False)
