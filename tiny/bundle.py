"""Put trained parts into the tiny bundle, each only if it is better than what is there.

    python -m tiny.bundle inpainter --run runs/tiny/inpainter

Where the evaluation of the part is missing, the error names the command that makes it.
"""

import logging
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from ldm.files import hash_folder, read_json, write_json
from ldm.settings.cli import new_app, run_module
from tiny.inpainter.train import STAGES

BUNDLE, RUNS, RESULTS = Path("assets/tiny"), Path("runs/tiny"), Path("benchmarks/results")
MANIFEST = "manifest.json"
LIMITS_MB = {"compositor": 18, "depth": 6, "locator": 6, "inpainter": 12, "prompter": 6, "shadow": 2}
QUALITY = {  # of what was measured on held-out scenes, more is better
    "compositor": lambda held_out: held_out["best_psnr_db"],
    "depth": lambda held_out: -held_out["mae"],
    "shadow": lambda held_out: held_out["f1"],
    "locator": lambda held_out: next(iter(held_out["place"].values()))["valid"],  # greedy answers
    "inpainter": lambda held_out: held_out["models"]["rca_finetuned"]["random"]["all"]["colour"]["mean"],
    "prompter": lambda held_out: held_out["tasks"]["multimask"]["accuracy"]["prompter"]["both"]["mean"],
}

Evaluation = Annotated[Path, typer.Option(help="JSON of the evaluation on held-out scenes")]
Run = Annotated[Path, typer.Option(help="training run")]


def install(part: str, source: Path, manifest: dict[str, Any]) -> None:
    """Replace a part of the bundle as a whole by a folder, if that is better on held-out scenes."""
    from ldm.checkpoints import folder_written_whole

    target = BUNDLE / part
    if (target / MANIFEST).exists():
        old, new = (QUALITY[part](facts["held_out"]) for facts in (read_json(target / MANIFEST), manifest))
        if new <= old:
            raise ValueError(f"{target}: better on held-out scenes than the new one; remove it first")
    size = sum(file.stat().st_size for file in source.rglob("*.safetensors")) / 2**20
    if size > LIMITS_MB[part]:
        raise ValueError(f"{source}: {size:.1f} MB of weights, {part} may have {LIMITS_MB[part]}")
    with folder_written_whole(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        for leftover in folder.rglob("log.csv"):
            leftover.unlink()
        write_json(folder / MANIFEST, manifest)
    logging.getLogger(__name__).info("%s: %.1f MB", target, size)


def read_evaluation(path: Path, command: str) -> dict[str, Any]:
    """ValueError names the command that makes a missing file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `python -m {command}` makes it")
    return read_json(path)


def compositor(run: Run = RUNS / "bifrost", evaluation: Evaluation = RUNS / "evaluation.json") -> None:
    """Install the compositor of a run."""
    from cldm.model import load_compositor

    measured = read_evaluation(evaluation, f"cldm.evaluate --model {run}/model --out {evaluation}")
    load_compositor(run / "model")
    manifest = read_json(run / MANIFEST)
    rows = {name: row["all"]["mean"] for name, row in measured["psnr_visible_db"].items()}
    psnr = {name: rows[name] for name in rows if name.startswith(("noise", "paste"))}
    best = max(psnr, key=lambda name: psnr[name])
    first_stage = run.parent / "first_stage" / MANIFEST
    manifest["held_out"] = {"best": best, "best_psnr_db": psnr[best], **measured}
    manifest["first_stage"] = read_json(first_stage) if first_stage.exists() else {}
    install("compositor", run / "model", manifest)


def depth(run: Run = RUNS / "depth") -> None:
    """Install the depth network of a run."""
    install("depth", run / "network", read_json(run / "network" / MANIFEST))


def shadow(run: Run = RUNS / "shadow") -> None:
    """Install the shadow network of a run, and the curve of its training."""
    install("shadow", run / "network", read_json(run / "network" / MANIFEST))
    shutil.copyfile(run / "curve.png", RESULTS / "shadow_training.png")


def locator(run: Run = RUNS / "locator", evaluation: Evaluation = RESULTS / "locator.json") -> None:
    """Install the locator of a run, with what was measured on held-out scenes."""
    from llava_bifrost.locator import load_locator

    measured = read_evaluation(evaluation, f"llava_bifrost.evaluate --model {run}/model --out {evaluation}")
    load_locator(run / "model")
    manifest = read_json(run / "model" / MANIFEST)
    held_out = {"gates": manifest["held_out"].get("gates", {})}
    held_out["gap_to_another_image"] = measured["gap_to_another_image"]
    for kind in ("place", "replace"):
        rows = {row: numbers.items() for row, numbers in measured[kind].items()}
        means = {row: {name: n["mean"] for name, n in pairs if "mean" in n} for row, pairs in rows.items()}
        held_out[kind] = means
    install("locator", run / "model", manifest | {"held_out": held_out})


def inpainter(run: Run = RUNS / "inpainter", evaluation: Evaluation = RESULTS / "inpainter.json") -> None:
    """Install the inpainter of a run: networks, both LoRAs and the classifier of the evaluation."""
    from inpainting.models.text_to_image.load import INPAINTER_FILE, load_inpainter
    from ldm.checkpoints import folder_written_whole

    measured = read_evaluation(evaluation, f"tiny.inpainter.evaluate --run {run} --out {evaluation.parent}")
    manifest = read_json(run / "painter" / MANIFEST)
    facts, stages = {"parameters", "seed", "steps", "samples", "minutes", "code_revision"}, {}
    for stage in STAGES:
        made = read_json(run / stage / MANIFEST)
        stages[stage] = {name: made[name] for name in made if name in facts}
    held_out = {name: value for name, value in measured.items() if name != "settings"}
    manifest |= {"part": "inpainter", "stages": stages, "held_out": held_out}
    with folder_written_whole(run / "bundle") as folder:
        shutil.copytree(run / "painter" / "model", folder, dirs_exist_ok=True)
        for name in ("rca", "plain"):
            shutil.copytree(run / name / "lora", folder / name)
        unused = shutil.ignore_patterns("*.pt", "*.csv", MANIFEST)
        shutil.copytree(run / "judge", folder / "judge", ignore=unused)
        config = read_json(folder / INPAINTER_FILE)
        write_json(folder / INPAINTER_FILE, {**config, "lora": "rca", "encoding": "separate"})
    load_inpainter(run / "bundle", device="cpu")
    install("inpainter", run / "bundle", manifest)


def prompter(run: Run = RUNS / "prompter", evaluation: Evaluation = RESULTS / "prompter.json") -> None:
    """Install the prompt writer of a run, with what was measured on held-out scenes."""
    from inpainting.models.image_to_text.writer import PromptWriter

    measured = read_evaluation(evaluation, f"tiny.prompter.evaluate --model {run}/model --out {evaluation}")
    PromptWriter.load(run / "model", device="cpu")
    manifest = read_json(run / "model" / MANIFEST)
    if measured["weights"] != hash_folder(run / "model"):
        raise ValueError(f"{evaluation}: measured with other weights than those of {run / 'model'}")
    manifest["held_out"] = {"gates": manifest["held_out"].get("gates", {}), "tasks": measured["tasks"]}
    install("prompter", run / "model", manifest)


def build_app() -> typer.Typer:
    app = new_app("Assemble assets/tiny from training runs.")
    for part in (compositor, depth, shadow, locator, inpainter, prompter):
        app.command(part.__name__)(part)
    return app


if __name__ == "__main__":
    run_module(build_app)
