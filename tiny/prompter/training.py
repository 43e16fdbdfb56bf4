"""The stages of the small prompt writer: seeing painted masks, writing what they hide."""

import logging
from collections.abc import Iterator

import numpy as np
import torch
from tokenizers import decoders
from torch import Tensor

from inpainting.prompts import CONFIG_FILE, TEMPLATE, PrompterConfig
from ldm.files import hash_folder
from ldm.mllm.model import load_model
from ldm.mllm.templates import TEMPLATES
from tiny import llava
from tiny.loop import stages_manifest
from tiny.prompter import captions
from tiny.prompter.data import Painted, Sets, draw_masks, open_sets, paint_scenes
from tiny.prompter.train import PrompterTraining
from tiny.settings import MASK_COLORS
from tiny.world import split_scenes, word_tokenizer

log = logging.getLogger(__name__)

VISION = ("model.vision_tower.", "model.multi_modal_projector.")
NOTICE = (
    "This is the small prompt writer, trained on rendered scenes of plain solids in sets only: it writes "
    "captions such as 'a red cone'. For paintings: the released adapter, see docs/prompts.md."
)


def train_prompter(config: PrompterTraining) -> None:
    """Train the small prompt writer in two stages; the same command again continues."""
    render = f"tiny.prompter.scenes --out {config.data} --count {2 * config.held_out}"
    train, held_out = split_scenes(config.scenes, config.held_out, render)
    sets = open_sets(config.data, config.out / "cache", config.scenes)
    model = llava.create_llava(config.model, captions.VOCABULARY, config.seed)
    vision_files: dict[str, str] = {}  # name -> SHA-256
    if folder := config.vision_from:
        stored = load_model(folder, torch.float32).state_dict()
        shapes = {name: value.shape for name, value in model.state_dict().items() if name.startswith(VISION)}
        wrong = [name for name, shape in shapes.items() if name not in stored or stored[name].shape != shape]
        if wrong:
            raise ValueError(f"{folder}: its vision tower is of another kind or size, such as {wrong[0]}")
        model.load_state_dict({name: stored[name] for name in shapes}, strict=False)
        vision_files = hash_folder(folder)

    def draw(rng: np.random.Generator, size: int) -> Painted:
        index, flip = train[rng.integers(len(train), size=size)], rng.random(size) < 0.5
        masks = [draw_masks(sets, scene, config.most, rng) for scene in index.tolist()]
        return paint_scenes(sets, index, flip, masks)

    def draw_with_pixels(rng: np.random.Generator, size: int) -> tuple[Tensor, Painted]:
        painted = draw(rng, size)
        return llava.pixel_values(painted.images_u8, rng), painted

    images = held_out_images(sets, held_out, len(MASK_COLORS))
    shown = ((llava.pixel_values(painted.images_u8), painted) for painted in images)
    read, see, seen = llava.train_vision(
        config, model, sum(captions.SECTIONS), draw_with_pixels, shown, captions.painted_loss
    )
    measures = {"vision": seen}
    writer = llava.LanguageTrainer(model, read, captions.ATTENTION_LAYERS)
    settings = config.writing
    sees = settings.vision_lr > 0 and not config.blind
    attention_weight = 0.0 if config.blind else config.attention_loss_weight
    weights = attention_weight, config.vision_loss_weight if sees else 0.0

    def loss(step: int) -> tuple[Tensor, llava.Measures]:
        rng = np.random.default_rng((config.seed, 2, step))
        painted = draw(rng, settings.batch)
        alone = rng.random(settings.batch) < config.alone
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            pixels = llava.pixel_values(painted.images_u8, rng)
            return captions.writing_loss(writer, painted, pixels, weights, alone)

    write = writer.train_stage("writing", settings, config.out, loss)
    writer.eval()
    with torch.inference_mode():
        rows = [
            captions.writing_loss(writer, images, llava.pixel_values(images.images_u8), (1.0, 0.0))[1]
            for images in held_out_images(sets, held_out, config.most)
        ]
    measures["writing"] = llava.rounded_means(rows)
    log.info("writing: %s", measures["writing"])
    manifest = stages_manifest(
        "prompter", model, [see, write], config, config.seed, held_out={"gates": measures}
    ) | {"vision_from": vision_files}
    prompts = PrompterConfig(
        name="tiny prompter", notice=NOTICE, colors=MASK_COLORS, longest=captions.CAPTION
    )
    files = {"manifest.json": manifest, CONFIG_FILE: prompts}
    tokenizer = word_tokenizer(
        captions.VOCABULARY, captions.PIECES, decoders.Fuse(), TEMPLATES[TEMPLATE], begins=True
    )
    llava.save_llava(config, model, tokenizer, captions.CAPTION * len(MASK_COLORS) + 1, files)


def held_out_images(sets: Sets, scenes: np.ndarray, most: int) -> Iterator[Painted]:
    """Batches of scenes with masks that depend on the scene alone; those without masks are left out."""
    for part in np.array_split(scenes, max(1, len(scenes) // 64)):
        drawn = {
            scene: draw_masks(sets, scene, most, np.random.default_rng(scene)) for scene in part.tolist()
        }
        masks = {scene: masks for scene, masks in drawn.items() if masks.solids}
        yield paint_scenes(sets, np.array(list(masks)), np.zeros(len(masks), bool), list(masks.values()))
