"""Put trained parts into the tiny bundle, each only if it is better than what is there.

python -m cldm.evaluate --model runs/tiny/bifrost/model --out runs/tiny/evaluation.json
python -m tiny.bundle compositor --run runs/tiny/bifrost
python -m tiny.bundle depth --run runs/tiny/depth
python -m llava_bifrost.evaluate --model runs/tiny/locator/model --out benchmarks/results/locator.json
python -m tiny.bundle locator --run runs/tiny/locator
python -m tiny.inpainter.evaluate --run runs/tiny/inpainter
python -m tiny.bundle inpainter --run runs/tiny/inpainter
python -m tiny.prompter.evaluate --model runs/tiny/prompter/model
python -m tiny.bundle prompter --run runs/tiny/prompter
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from cldm.pretrained import CONFIG_FILE, Sampling, load_compositor, load_compositor_config
from inpainting.models.image_to_text.writer import PromptWriter
from inpainting.models.text_to_image.load import INPAINTER_FILE, load_inpainter
from ldm.checkpoints import folder_written_whole
from ldm.files import hash_folder, read_json
from ldm.settings.cli import new_app, run_module
from ldm.settings.config import load_config, to_plain
from llava_bifrost.locator import load_locator

logger = logging.getLogger(__name__)

BUNDLE = Path("assets/tiny")
MANIFEST = "manifest.json"
LIMITS_MB = {"compositor": 18, "depth": 6, "locator": 6, "inpainter": 12, "prompter": 6}


def install(
    part: str, source: Path, manifest: dict[str, Any], better: bool, card: dict[str, Any] | None = None
) -> None:
    """Replace a part of the bundle as a whole."""
    target = BUNDLE / part
    if target.exists() and not better:
        raise ValueError(f"{target}: better on held-out scenes than the new one; --force replaces it")
    size = sum(file.stat().st_size for file in source.rglob("*.safetensors")) / 2**20
    if size > LIMITS_MB[part]:
        raise ValueError(f"{source}: {size:.1f} MB of weights, {part} may have {LIMITS_MB[part]}")
    with folder_written_whole(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for leftover in folder.rglob("log.csv"):
            leftover.unlink()
        if card is not None:
            (folder / CONFIG_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    logger.info("%s: %.1f MB", target, size)


def best(evaluation: dict[str, Any]) -> tuple[str, float]:
    """The variant with the highest mean PSNR, and that number (dB)."""
    variants = {name: row["all"]["mean"] for name, row in evaluation["psnr_visible_db"].items()
                if name.startswith(("noise", "paste"))}  # fmt: skip
    name = max(variants, key=lambda key: variants[key])
    return name, variants[name]


def compositor(
    run: Annotated[Path, typer.Option(help="training run")] = Path("runs/tiny/bifrost"),
    evaluation: Annotated[Path, typer.Option(help="JSON written by python -m cldm.evaluate")] = Path(
        "runs/tiny/evaluation.json"
    ),
    sampling: Annotated[list[str] | None, typer.Option(help="key=value of the recommended sampling")] = None,
    force: Annotated[bool, typer.Option(help="replace a better part")] = False,
) -> None:
    """Install the compositor of a run; its recommended sampler settings may be changed."""
    load_compositor(run / "model")
    measured = read_json(evaluation)
    manifest = read_json(run / MANIFEST)
    name, value = best(measured)
    first_stage = run.parent / "first_stage" / MANIFEST
    manifest["held_out"] = {"best": name, "best_psnr_db": value, **measured}
    manifest["first_stage"] = read_json(first_stage) if first_stage.exists() else {}
    old = BUNDLE / "compositor" / MANIFEST
    better = force or not old.exists() or value > read_json(old)["held_out"]["best_psnr_db"]
    card = load_compositor_config(run / "model")
    chosen = load_config(Sampling, None, [*flat(to_plain(card.sampling)), *(sampling or [])])
    install("compositor", run / "model", manifest, better, {**to_plain(card), "sampling": to_plain(chosen)})


def flat(values: dict[str, Any]) -> list[str]:
    """{"a": 1} -> ["a=1"]"""
    return [f"{key}={value}" for key, value in values.items()]


def depth(
    run: Annotated[Path, typer.Option(help="training run")] = Path("runs/tiny/depth"),
    force: Annotated[bool, typer.Option(help="replace a better part")] = False,
) -> None:
    """Install the depth network of a run."""
    manifest, old = read_json(run / "network" / MANIFEST), BUNDLE / "depth" / MANIFEST
    better = force or not old.exists() or manifest["held_out"]["mae"] < read_json(old)["held_out"]["mae"]
    install("depth", run / "network", manifest, better)


def locator(
    run: Annotated[Path, typer.Option(help="training run")] = Path("runs/tiny/locator"),
    evaluation: Annotated[Path, typer.Option(help="JSON of python -m llava_bifrost.evaluate")] = Path(
        "benchmarks/results/locator.json"
    ),
    force: Annotated[bool, typer.Option(help="replace a better part")] = False,
) -> None:
    """Install the locator of a run, with what was measured on held-out scenes."""
    load_locator(run / "model")
    measured, manifest = read_json(evaluation), read_json(run / "model" / MANIFEST)
    gates = manifest["held_out"].get("gates", {})
    manifest["held_out"] = {"gates": gates, "gap_to_another_image": measured["gap_to_another_image"]}
    for kind in ("place", "replace"):
        manifest["held_out"][kind] = {row: means(numbers) for row, numbers in measured[kind].items()}
    old = BUNDLE / "locator" / MANIFEST
    better = force or not old.exists() or valid_share(manifest) > valid_share(read_json(old))
    install("locator", run / "model", manifest, better)


def means(numbers: dict[str, dict[str, Any]]) -> dict[str, float]:
    """{"valid": {"n": ..., "mean": ...}} -> {"valid": mean}"""
    return {name: number["mean"] for name, number in numbers.items() if "mean" in number}


def valid_share(manifest: dict[str, Any]) -> float:
    """Share of greedy answers that are valid places."""
    return next(iter(manifest["held_out"]["place"].values()))["valid"]


def inpainter(
    run: Annotated[Path, typer.Option(help="training run")] = Path("runs/tiny/inpainter"),
    evaluation: Annotated[Path, typer.Option(help="JSON of python -m tiny.inpainter.evaluate")] = Path(
        "benchmarks/results/inpainter.json"
    ),
    force: Annotated[bool, typer.Option(help="replace a better part")] = False,
) -> None:
    """Install the inpainter of a run: networks, both LoRAs and the classifier of the evaluation."""
    measured, stages = read_json(evaluation), ("first_stage", "painter", "rca", "joint", "plain", "judge")
    manifest = read_json(run / "painter" / MANIFEST) | {"part": "inpainter"}
    manifest["stages"] = {stage: stage_facts(run / stage) for stage in stages}
    manifest["held_out"] = {name: value for name, value in measured.items() if name != "settings"}
    old = BUNDLE / "inpainter" / MANIFEST
    better = force or not old.exists() or painted_right(measured) > painted_right(read_json(old)["held_out"])
    with folder_written_whole(run / "bundle") as folder:
        shutil.copytree(run / "painter" / "model", folder, dirs_exist_ok=True)
        for name in ("rca", "plain"):
            shutil.copytree(run / name / "lora", folder / name)
        judge = shutil.ignore_patterns("*.pt", "*.csv", MANIFEST)
        shutil.copytree(run / "judge", folder / "judge", ignore=judge)
        card = {**read_json(folder / INPAINTER_FILE), "lora": "rca", "encoding": "separate"}
        (folder / INPAINTER_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    load_inpainter(run / "bundle")
    install("inpainter", run / "bundle", manifest, better)


def stage_facts(folder: Path) -> dict[str, Any]:
    """How one stage of a run was trained."""
    names = ("parameters", "seed", "steps", "samples", "minutes", "code_revision")
    return {name: value for name, value in read_json(folder / MANIFEST).items() if name in names}


def painted_right(evaluation: dict[str, Any]) -> float:
    """Share of masks that show the colour which their own prompt names."""
    return float(evaluation["models"]["rca_finetuned"]["random"]["all"]["colour"]["mean"])


def prompter(
    run: Annotated[Path, typer.Option(help="training run")] = Path("runs/tiny/prompter"),
    evaluation: Annotated[Path, typer.Option(help="JSON of python -m tiny.prompter.evaluate")] = Path(
        "benchmarks/results/prompter.json"
    ),
    force: Annotated[bool, typer.Option(help="replace a better part")] = False,
) -> None:
    """Install the prompt writer of a run, with what was measured on held-out scenes."""
    PromptWriter.load(run / "model", device="cpu")
    measured, manifest = read_json(evaluation), read_json(run / "model" / MANIFEST)
    if measured["weights"] != hash_folder(run / "model"):
        raise ValueError(f"{evaluation}: measured with other weights than those of {run / 'model'}")
    manifest["held_out"] = {"gates": manifest["held_out"].get("gates", {}), "tasks": measured["tasks"]}
    old = BUNDLE / "prompter" / MANIFEST
    better = force or not old.exists() or written_right(manifest) > written_right(read_json(old))
    install("prompter", run / "model", manifest, better)


def written_right(manifest: dict[str, Any]) -> float:
    """Share of all masks whose colour and shape are named."""
    return float(manifest["held_out"]["tasks"]["multimask"]["accuracy"]["prompter"]["both"]["mean"])


def build_app() -> typer.Typer:
    app = new_app("Assemble assets/tiny from training runs.")
    app.command("compositor")(compositor)
    app.command("depth")(depth)
    app.command("locator")(locator)
    app.command("inpainter")(inpainter)
    app.command("prompter")(prompter)
    return app


if __name__ == "__main__":
    run_module(build_app)
