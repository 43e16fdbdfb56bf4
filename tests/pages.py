"""The documents as data: code blocks, commands, links, and a stand-in for running a command."""

import functools
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ldm.settings.cli import run_app
from ldm.settings.config import load_config
from tests.conftest import ROOT

PAGES = [
    *("README.md", "CONTRIBUTING.md", "assets/tiny/README.md"),
    *("docs/compositor.md", "docs/scenes.md", "docs/released_weights.md", "docs/datasets.md"),
    *("docs/inpainting.md", "docs/paintings.md", "docs/prompts.md", "docs/locator.md"),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PLACEHOLDER = re.compile(r"\b[A-Z]{4,}\b|\.\.\.|/path/to")
ASSIGNMENT = re.compile(r"^\w+=\S*$")
# Trainers: program -> the dataclass that its YAML file and key=value arguments fill.
TRAINERS = {
    "run_train_bifrost": "run_train_bifrost:RunConfig",
    "tiny.compositor.autoencoder": "tiny.compositor.autoencoder:FirstStageConfig",
    "tiny.depth.train": "tiny.depth.train:TrainDepthConfig",
    "tiny.inpainter.train": "tiny.inpainter.train:TrainConfig",
    "tiny.prompter.train": "tiny.prompter.train:PrompterTraining",
    "tiny.locator.train": "tiny.locator.train:LocatorTraining",
    "llava_bifrost.train": "llava_bifrost.train:TrainConfig",
}
# Commands with verbs or options: program -> the functions that would do the work.
WORKERS = {
    "run_inference": ["run_image", "replay", "batch", "run_dreambooth"],
    "datasets.scenes.__main__": ["render_command", "sheet_command"],
    "cldm.evaluate.__main__": ["run"],
    "tiny.inpainter.evaluate": ["run"],
    "tiny.prompter.scenes": ["run"],
    "tiny.prompter.evaluate": ["run"],
    "llava_bifrost.evaluate.__main__": ["evaluate_locator"],
    "inpainting.data.downloader": ["fetch_annotations", "fetch_images"],
    "inpainting.data.ops": [
        *("build", "annotate_images_command", "caption_masks_command", "extract_noun_chunk_roots"),
        *("make_masks_dataset", "make_entities_dataset", "train_val_test_split"),
        *("llava_annotations_to_folder", "llava_annotations_to_entity_annotations"),
    ],
    "inpainting.data.dci_ops": [
        *("make_masks_dataset", "make_entities_dataset", "to_lowercase", "train_val_test_split"),
    ],
    "inpainting.data.eval": ["evaluate_global", "evaluate_local"],
    "inpainting.models.image_to_text.fine_tune_llavanext": ["train"],
    "inpainting.models.text_to_image.train_text_to_image_lora": ["train"],
    "inpainting.models.text_to_image.test": [
        *("generate", "generate_prompts", "generate_repeated", "compute", "make_table"),
    ],
    "inpainting.models.image_to_text.score": ["score"],
    "inpainting.paint": ["run_paint"],
    "inpainting.dream": ["run_dream"],
    "benchmarks.rca": ["main"],
    "benchmarks.full_size": ["main"],
    "cldm.convert.__main__": ["anydoor", "bifrost", "sd21", "dinov2", "dpt", "export"],
    "ldm.registry.__main__": ["list_models", "show", "where", "pull", "register", "verify"],
    "ldm.doctor": ["report"],
    "benchmarks.convert": ["measure"],
    "tiny.bundle": ["compositor", "depth", "locator", "inpainter", "prompter"],
    "run_dataset_debug": ["debug"],
    "ldm.precompute_depth": ["estimate_tree"],
    "llava_bifrost.predict.__main__": ["run_image", "run_jobs"],
    "llava_bifrost.model": ["convert", "merge"],
    "llava_bifrost.build_dataset.__main__": ["build_coco", "build_scenes", "merge_shards"],
    "datasets.uvo_process": ["process"],
    "compose.contact_sheet": ["make"],
    "scripts.docs.make_teaser": ["make"],
    "scripts.docs.make_examples": ["make"],
    "scripts.docs.make_command_docs": ["make"],
    "compose.benchmark.__main__": ["build", "check", "jobs", "score_composites"],
    "scripts.docs.draw_figure": ["make"],
    "scripts.docs.draw_locator": ["make"],
    "benchmarks.placer": ["main"],
    "benchmarks.shadow": ["main"],
    "scripts.docs.draw_regions": ["make"],
}


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return [text for found, text in BLOCK.findall(text_of(page)) if found == language]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return BLOCK.sub("", text_of(page))


def commands(page: str) -> list[str]:
    """Every command line of the sh blocks, and every command without placeholders inside a sentence."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    found = [line for line in lines if line.strip() and not line.startswith("#")]
    spoken = [
        code for code in INLINE.findall(prose(page)) if words_of(code)[:1] in (["sh"], ["bash"], ["python"])
    ]
    return found + [code for code in spoken if not PLACEHOLDER.search(" ".join(words_of(code)))]


def words_of(command: str) -> list[str]:
    """The words of a command without leading VAR=value."""
    words = shlex.split(command, comments=True) if command.count("'") % 2 == 0 else command.split()
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    return words


def links(page: str) -> Iterator[tuple[Path, str]]:
    """(file, anchor) of every link into this repository."""
    for target in LINK.findall(prose(page)):
        if not re.match(r"https?://", target):
            path, _, anchor = target.partition("#")
            yield ((ROOT / page).parent / path if path else ROOT / page), anchor


def anchors(page: Path) -> set[str]:
    """What a link may name after #, by GitHub's rule."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def rehearse(command: str, monkeypatch: Any) -> list[Any]:
    """Do everything that a command does before its work; returns what the work would have been given."""
    words = words_of(command)
    if words[0] in ("sh", "bash"):
        assert (ROOT / words[1]).is_file(), command
        return rehearse_script(words[1], words[2:], monkeypatch)
    if words[:2] == ["accelerate", "launch"]:
        words = ["python", *words[2:]]
    assert words[0] == "python", command
    program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    assert words[1] == "-m" or "/" not in program, f"{command}: run as a module, python -m"
    module = program.removesuffix(".py")
    if module in TRAINERS:
        return [configured(TRAINERS[module], arguments)]
    package = (ROOT / module.replace(".", "/")).is_dir()
    return called(f"{module}.__main__" if package else module, arguments, monkeypatch)


def rehearse_script(script: str, arguments: list[str], monkeypatch: Any) -> list[Any]:
    """What a shell script passes on."""
    if script == "scripts/train.sh":
        named = arguments[:1] if arguments[:1] and arguments[0].endswith(".yaml") else []
        rest = arguments[len(named) :]
        named = named or ["configs/tiny/compositor.yaml"]
        return [configured(TRAINERS["run_train_bifrost"], [*named, *rest])]
    if script == "scripts/train_llava.sh":
        named = arguments[:1] if arguments[:1] and arguments[0].endswith(".yaml") else []
        rest = arguments[len(named) :]
        own = named or ["configs/llava_bifrost/train.yaml"]
        return [configured(TRAINERS["llava_bifrost.train"], [*own, *rest])]
    if script in ("scripts/demo.sh", "scripts/inference.sh"):
        return called("run_inference", ["image", "--config", "configs/demo.yaml", *arguments], monkeypatch)
    return []


def configured(schema: str, arguments: list[str]) -> Any:
    module, _, name = schema.partition(":")
    return load_config(getattr(importlib.import_module(module), name), ROOT / arguments[0], arguments[1:])


def called(module: str, arguments: list[str], monkeypatch: Any) -> list[Any]:
    """Run the command line of a module with its work replaced; returns the arguments of the work."""
    program, given = importlib.import_module(module), []
    assert module in WORKERS, f"{module} is not a command of this repository"
    for name in WORKERS[module]:
        work = getattr(program, name)

        @functools.wraps(work)
        def record(*settings: Any, **options: Any) -> None:
            given.extend([*settings, options])

        monkeypatch.setattr(program, name, record)
    assert run_app(program.build_app, arguments) == 0, f"{module} {' '.join(arguments)}"
    return given
