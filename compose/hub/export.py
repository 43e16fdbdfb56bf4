"""Folders of ours -> folders of the hub: stock networks, one file of code, a card, scores; the benchmark."""

import filecmp
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import diffusers
import torch
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData, RepoCard
from safetensors.torch import save_file
from torch import Tensor

from cldm.config import load_compositor_config
from compose.benchmark.report import DISTANCES, MEASURES
from compose.hub.settings import BenchmarkHub, CompositorHub, HubSettings, InpainterHub
from compose.hub.source import Bundle, Definition
from datasets.benchmark import read_benchmark
from datasets.scenes.settings import eval_seed
from inpainting.models.text_to_image.load import load_inpainter
from ldm.checkpoints import folder_written_whole, read_weights
from ldm.experts.depth import NOTICE_FILE, DepthEstimator
from ldm.files import located, read_json, set_aside, write_atomic, write_json
from ldm.latents import STATISTICS, make_scheduler
from ldm.registry.models import depth_folder
from ldm.settings.config import to_plain

CARDS = Path(__file__).parent / "cards"
VERSION = {"_diffusers_version": diffusers.__version__}
# Methods that read, write or remember files of ours; diffusers gives a pipeline its networks.
FILES = {
    "IdentityEncoder.save_pretrained",
    "IdentityEncoder.from_pretrained",
    "LatentSpace.save_pretrained",
    "LatentSpace.from_pretrained",
    "DepthEstimator.load",
    "DepthEstimator.estimate",
    "DepthEstimator.estimate_many",
    "RegionPrompt.__post_init__",
    "PreparedJob.finish",
    "Recent.keep",
}
# Of the held-out numbers of what was trained here: part -> number -> where it stands in manifest.json.
BEST = "noise, 1 steps, guidance 1, detail 1/all"
SCORES = {
    "compositor": {name: f"{name}/{BEST}" for name in ("psnr_visible_db", "ssim_visible")},
    "inpainter": {name: f"models/rca_finetuned/true/all/{name}" for name in ("colour", "shape", "both")},
}

SCENES = "bifrost-scenes"  # the data set of these numbers, which `benchmark` writes
HELD_OUT = 512  # scenes of the evaluation split that README renders


def export_compositor(settings: CompositorHub) -> None:
    """The projector goes into `encoder_hid_proj` of the detail branch, so all networks are stock ones."""
    source, config = settings.source, load_compositor_config(settings.source)
    depth = depth_folder(settings.depth_model)
    facts = read_json(depth / NOTICE_FILE) if (depth / NOTICE_FILE).is_file() else {}
    depth = located(facts.get("scenes", depth))
    values = {"pair": to_plain(config.pair), "sampling": to_plain(config.sampling)}
    values["latents"] = read_json(source / "vae" / STATISTICS)
    with hub_folder(settings, "pipeline_bifrost", "BifrostPipeline", values) as folder:
        for name in ("unet", "control_detail", "control_depth", "image_encoder", "vae"):
            copy_part(source / name, folder / name)
        copy_part(depth, folder / "depth_estimator")
        values["depth"] = to_plain(DepthEstimator.load(depth).input)
        detail, projector = folder / "control_detail", read_weights(source / "projector")
        changes = {"encoder_hid_dim": projector["weight"].shape[1], "encoder_hid_dim_type": "text_proj"}
        weights = {f"encoder_hid_proj.{key}": value for key, value in projector.items()}
        write_stock_network(
            detail, {**read_json(detail / "config.json"), **changes}, read_weights(detail) | weights
        )
        schedule = read_json(source / "scheduler" / "scheduler_config.json")
        make_scheduler(config.sampling.scheduler, schedule).save_pretrained(folder / "scheduler")


def export_inpainter(settings: InpainterHub) -> None:
    """Layers that a LoRA changes are written in single precision, so that merging rounds nothing."""
    pipe = load_inpainter(settings.source, settings.lora, device="cpu", dtype=torch.float32)
    space, stored = pipe.latent_space, read_weights(settings.source / "unet")
    values = {"inpainter": {**to_plain(pipe.config), "vae": "vae", "lora": ""}}
    values["latents"] = {"mean": space.mean.flatten().tolist(), "std": space.std.flatten().tolist()}
    with hub_folder(settings, "pipeline_multi_mask", "MultiMaskInpaintPipeline", values) as folder:
        for name in ("text_encoder", "tokenizer", "scheduler"):
            copy_part(settings.source / name, folder / name)
        copy_part(settings.source / pipe.config.vae, folder / "vae")
        merged = {key: value.contiguous() for key, value in pipe.unet.state_dict().items()}
        same = {key for key, value in merged.items() if stored[key].float().equal(value)}
        weights = {key: stored[key] if key in same else value for key, value in merged.items()}
        write_stock_network(folder / "unet", dict(pipe.unet.config), weights)


def copy_part(source: Path, target: Path) -> None:
    """A `save_pretrained` folder without what only this repository reads."""
    ours = shutil.ignore_patterns(".*", STATISTICS, NOTICE_FILE, "manifest.json", "original")
    shutil.copytree(source, target, ignore=ours)


def write_stock_network(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """A network of diffusers in one file, in the place of another."""
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "config.json", config)
    save_file(dict(weights), folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})


@contextmanager
def hub_folder(settings: HubSettings, code: str, kind: str, values: Mapping[str, Any]) -> Iterator[Path]:
    """A folder that gets its networks in the block, then the code, indices, card and scores."""
    file = settings.source / "manifest.json"
    manifest = read_json(file) if file.is_file() else {}
    if not (licence := settings.license or ("apache-2.0" if manifest else "")):
        raise ValueError(f"{settings.source} was not trained here: --license names its weights' licence")
    data = ModelCardData(
        license=licence,
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["inpainting"],
        base_model=settings.base_model or None,
        base_model_relation=settings.relation if settings.base_model else None,
    )
    scores = {
        name: reduce(dict.__getitem__, [manifest["held_out"], *place.split("/")])["mean"]
        for name, place in SCORES.get(manifest.get("part", ""), {}).items()
    }
    name = settings.repo or settings.out.name
    card = ModelCard.from_template(data, str(CARDS / f"{code}.md"), name=name, scores=scores)
    with folder_written_whole(settings.out) as folder:
        yield folder
        about = f"{kind} of diffusers, in one file. Made from the modules that are named below."
        text = Bundle([Definition(f"compose.hub.{code}", kind)], FILES).write(about)
        write_atomic(folder / f"{code}.py", text.encode())
        write_indices(settings, folder, [code, kind], values)
        save_card(card, folder, settings.out)
        if scores and settings.repo:
            data_set = f"{settings.repo.split('/')[0]}/{SCENES}"
            note = f"held-out rendered scenes, code revision {manifest['code_revision']}"
            entries = [
                {"dataset": {"id": data_set, "task_id": name}, "value": value, "notes": note}
                for name, value in scores.items()
            ]
            write_atomic(folder / ".eval_results" / "scenes.yaml", yaml_bytes(entries))


def write_indices(settings: HubSettings, folder: Path, kind: list[str], values: Mapping[str, Any]) -> None:
    """What diffusers loads: a pipeline, and where it has them its blocks."""
    found = {}
    for path in sorted(each for each in folder.iterdir() if each.is_dir()):
        config = {key: value for file in path.glob("*config.json") for key, value in read_json(file).items()}
        stock = ["diffusers", config["_class_name"]] if "_class_name" in config else None
        found[path.name] = stock or ["transformers", config.get("architectures", ["CLIPTokenizer"])[0]]
    index = {"_class_name": kind, **VERSION, **found, "settings": values}
    write_json(folder / "model_index.json", index)
    if kind[1] == "BifrostPipeline":
        blocks = {"ModularPipelineBlocks": f"{kind[0]}.BifrostBlocks"}
        write_json(
            folder / "modular_config.json", {"_class_name": "BifrostBlocks", **VERSION, "auto_map": blocks}
        )
        place = {"pretrained_model_name_or_path": settings.repo or str(settings.out), "variant": None}
        parts = {
            name: [*each, {**place, "subfolder": name, "revision": None, "type_hint": each}]
            for name, each in found.items()
        }
        names = {"_class_name": "ModularPipeline", "_blocks_class_name": "BifrostBlocks"}
        write_json(folder / "modular_model_index.json", {**index, **names, **parts})


def export_benchmark(settings: BenchmarkHub) -> None:
    """Cases as JSON Lines, the manifest, and what is scored; images keep their own licences and homes.

    Without a manifest the data set that `.eval_results` of the models name: seeds of held-out scenes.
    """
    template, name = "scenes", SCENES
    numbers: dict[str, Any] = {number: "" for part in SCORES.values() for number in part}
    cases: list[Any] = [{"scene": index, "seed": eval_seed(index)} for index in range(HELD_OUT)]
    about = "Rendered scenes that training of the small networks did not see, by their seeds."
    if settings.manifest is not None:
        manifest = read_benchmark(settings.manifest)
        template, name, numbers = "benchmark", manifest.name, {**MEASURES, **DISTANCES}
        cases = [to_plain(case) for case in manifest.cases]
        about = "Objects of DreamBooth in images of COCO: a composite a case, by box, relation and sentence."
    evaluation = {
        "name": name,
        "description": about,
        "evaluation_framework": "bifrost",
        "tasks": [{"id": number, "config": "default", "split": "test"} for number in numbers],
    }
    files = {"config_name": "default", "data_files": [{"split": "test", "path": "test.jsonl"}]}
    data = DatasetCardData(license="apache-2.0", task_categories=["image-to-image"], configs=[files])
    facts: dict[str, Any] = {"name": settings.repo or name, "cases": len(cases), "numbers": numbers}
    card = DatasetCard.from_template(data, str(CARDS / f"{template}.md"), **facts)
    with folder_written_whole(settings.out) as folder:
        write_atomic(folder / "test.jsonl", "".join(json.dumps(case) + "\n" for case in cases).encode())
        write_atomic(folder / "eval.yaml", yaml_bytes(evaluation))
        if settings.manifest is not None:
            shutil.copyfile(settings.manifest, folder / "manifest.json")
        save_card(card, folder, settings.out)


def save_card(card: RepoCard, folder: Path, former: Path) -> None:
    """Write the card; a former folder whose card somebody has changed is kept beside the new one."""
    card.save(folder / "README.md")
    edited = former / "README.md"
    if edited.is_file() and not filecmp.cmp(edited, folder / "README.md", shallow=False):
        set_aside([former])


def yaml_bytes(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()
