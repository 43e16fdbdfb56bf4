"""What each kind of layer does to a scene, by the function of the single command that does the same."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from compose.job import EraseSettings, JobLayer
from compose.models import JobNetworks
from compose.painters import erase_behind
from compose.pipeline import compose
from compose.scene import JobScene, Patch, Thing
from compose.settings import OFF, ComposeSettings
from compose.sources import replaced_region
from datasets.geometry import bbox_of_mask, box_to_01, box_to_pixels, mask_of_box
from datasets.masks import dilate
from datasets.relations import Place
from inpainting.models.text_to_image.pipeline import pair_masks
from inpainting.paint import PaintSettings
from inpainting.painting import PAINTER_KEYS, load_painter, paint_regions
from ldm.denoise import Monitor
from ldm.experts.detect import depth_in_box
from ldm.images import read_mask
from ldm.temporary import as_file
from llava_bifrost.language.reading import parse_instruction, with_known_names
from llava_bifrost.placement.placer import Item
from llava_bifrost.propose import as_json, propose
from llava_bifrost.settings import GEOMETRIC

OBJECT_KEYS = ("object", "object_mask", "object_depth", "object_box")  # what an object looks like


def apply_layer(layer: JobLayer, scene: JobScene, networks: JobNetworks) -> list[Patch]:
    """The patches of one layer; two where something goes before another thing comes."""
    new, find = layer.settings, layer.find
    if isinstance(new, ComposeSettings) and find is None:
        return [put_object(layer.name, new, scene, networks)]
    if isinstance(new, PaintSettings) and find is None:
        masks = [read_mask(path, size=scene.image.size) for path in new.masks]
        if layer.box is not None:
            masks = [mask_of_box(box_to_pixels(layer.box, scene.image.size), scene.image.size)]
        return [paint_text(layer.name, masks, layer.depth, new, scene, networks)]
    assert find is not None
    name, mask, place = find_target(layer, find, scene, networks)
    if isinstance(new, PaintSettings):
        grown = grown_mask(mask, place, find.grow, scene)
        return [paint_text(layer.called, [grown], None, new, scene, networks, [name])]
    placed = layer.mask is None and name in scene.things
    if new is not None and layer.kind == "replace" and not placed:
        target, extent = as_file(mask, "mask"), (place.far, place.near)
        new = replace(new, mode="replace", target_mask=target, box=None, depth=new.depth or extent)
        return [put_object(layer.called, new, scene, networks, gone=[name])]
    erased = erase_thing(name, mask, place, find, scene, networks, scene.things[name] if placed else None)
    clear = scene.with_patch(erased)
    if new is None:
        return [erased]
    if layer.kind == "replace":
        new = replace(new, box=place.box01_xyxy, depth=new.depth or (place.far, place.near))
        return [erased, put_object(layer.called, new, clear, networks)]
    if (own := source_of(layer, scene)) is not None:
        images = {key: getattr(own, key) for key in OBJECT_KEYS}
    else:
        shown = {"object": scene.image.rgb_u8, "object_mask": mask, "object_depth": scene.depth_01}
        images = {"object_box": None, **{key: as_file(image, key) for key, image in shown.items()}}
    return [erased, put_object(name, replace(new, **images), clear, networks, moved_from=place)]


def source_of(layer: JobLayer, scene: JobScene) -> ComposeSettings | None:
    """The settings that name the own image of the object that a layer brings; None: the scene shows it."""
    if layer.kind == "move":
        thing = None if layer.mask else scene.things.get(known_name(layer.name, scene.places))
        return None if thing is None else thing.settings
    return layer.settings if isinstance(layer.settings, ComposeSettings) else None


def put_object(
    name: str, settings: ComposeSettings, scene: JobScene, networks: JobNetworks,
    gone: list[str] | None = None, moved_from: Place | None = None,
) -> Patch:  # fmt: skip
    """An object composed into the scene, as the image verb does it."""
    if settings.instruction is not None and settings.locator is None:
        sentence, places = settings.instruction, scene.places
        try:
            for known in parse_instruction(sentence).named:
                sentence = re.sub(rf"\b{re.escape(known)}\b", known_name(known, places), sentence.lower())
            named = set(with_known_names(parse_instruction(sentence), places).named)
        except ValueError:
            pass  # the rules cannot read it: the default locator does
        else:
            locator = GEOMETRIC if named <= places.keys() else None
            settings = replace(settings, instruction=sentence, locator=locator)
    if settings.num_samples > 1:
        settings = replace(settings, best=1)
    stage = replace(scene, moved_from=moved_from)
    result = compose(settings, networks.of(settings), progress=False, stage=stage)
    layers, embed = result.geometry.native_layers, result.geometry.window.embed
    visible, report = embed(layers.visible), result.report
    edit = result.edit_mask & ~embed(layers.keep)
    replaced = result.geometry.inputs.mode == "replace"
    edit = edit if result.shadow_mask is None else edit | result.shadow_mask
    depth_01 = np.where(edit if replaced else visible, result.fused_depth_01, scene.depth_01)
    far, near = report["depth"]["far"], report["depth"]["near"]
    place = Place(tuple(report["box"]), (far + near) / 2, far, near)
    local = settings.mode == "place" and settings.instruction is None and settings.target_mask is None
    local = local and settings.shadow_there == OFF
    read = result.geometry.crop.box_xyxy if local else None
    keys = ("mode", "box", "depth", "visible_fraction", "placement", "ranking", "shadow")
    shown = {key: report[key] for key in keys if key in report}
    return Patch.of(
        result.images[0], depth_01, edit, visible, places={name: place}, gone=gone or [],
        report={"kind": "object", **shown, "seed": result.seeds[0]}, read=read)  # fmt: skip


def known_name(name: str, known: Mapping[str, Any]) -> str:
    """The full name of what "lamp" means where only one known object is some lamp; else the name itself."""
    fits = [full for full in known if f" {full}".endswith(f" {name}") or f" {name}".endswith(f" {full}")]
    if name not in known and len(fits) > 1:
        raise ValueError(f"{name!r} may be {' or '.join(map(repr, fits))}")
    return name if name in known or not fits else fits[0]


def find_target(
    layer: JobLayer, find: EraseSettings, scene: JobScene, networks: JobNetworks
) -> tuple[str, np.ndarray, Place]:
    """Name, visible pixels (H, W) bool and place of what a layer is about.

    It is what its mask shows, an object of an earlier layer, or one of the background.
    """
    size, rgb_u8, name = scene.image.size, scene.image.rgb_u8, layer.name
    if layer.mask is not None:
        mask, place = read_mask(layer.mask, size=size), None
    else:
        name = known_name(name, scene.places)
        if (thing := scene.things.get(name)) is not None:
            if not thing.mask.any():
                raise ValueError(f"nothing of the {name} is visible any more")
            return name, thing.mask, thing.place
        place = scene.anchors.get(name)
        if place is None:
            sentence = f"Replace the {layer.name} with the reference image"
            known = as_json(scene.anchors) if find.anchors else None
            *_, found = propose(find, sentence, rgb_u8, scene.depth_01, known, Item(), networks.models)
        mask, _ = replaced_region(find, rgb_u8, place.box01_xyxy if place else found[0].location.box01_xyxy)
        for thing in scene.things.values():  # what was put before it is not of it
            mask = mask & ~thing.mask
    if not mask.any():
        raise ValueError(f"nothing of the {name} is visible")
    box = box_to_01(bbox_of_mask(mask), size)
    return name, mask, place or Place(box, *depth_in_box(scene.depth_01, box, mask))


def grown_mask(mask: np.ndarray, place: Place, grow: float, scene: JobScene) -> np.ndarray:
    """(H, W) bool: the mask with its rim, less what other layers put in front of it."""
    front = np.zeros(mask.shape, bool)
    for thing in scene.things.values():
        front |= thing.mask if thing.place.d > place.d else False
    return (dilate(mask, grow and max(grow, 1.001 / min(mask.shape))) & ~front) | mask  # a pixel at least


def erase_thing(
    name: str, mask: np.ndarray, place: Place, find: EraseSettings, scene: JobScene, networks: JobNetworks,
    thing: Thing | None,
) -> Patch:  # fmt: skip
    """An object removed by the eraser; of a thing that a layer put there its pixels are taken back."""
    image, depth_01, by = scene.image, scene.depth_01, ""
    edit = hole = grown_mask(mask, place, find.grow, scene)
    if thing is not None:
        edit, under, by = scene.owner == thing.patch, scene.before[thing.patch - 1], "what was under it"
        alpha_u8, under_u8 = image.alpha_u8, under.image.alpha_u8
        if alpha_u8 is not None and under_u8 is not None:
            alpha_u8 = np.where(edit, under_u8, alpha_u8)
        own_u8 = np.where(edit[..., None], under.image.own_u8, image.own_u8)
        image, hole = image.with_own(own_u8, alpha_u8, np.s_[:, :]), np.zeros(edit.shape, bool)
        depth_01 = np.where(edit, under.depth_01, depth_01)
        for number, box in scene.cleared:  # what has been removed since does not come back
            if number > thing.patch:
                hole |= edit & mask_of_box(box_to_pixels(box, edit.shape), edit.shape)
    if hole.any():
        eraser = networks.eraser(find.eraser, find.device)
        front = [other.mask for key, other in scene.things.items() if key != name]  # their colours stay out
        unknown = np.logical_or.reduce([hole, *front])
        filled_u8, depth_01 = erase_behind(eraser, image.rgb_u8, hole, unknown, depth_01, find.seed)
        image, by = image.painted(filled_u8, hole.astype(np.float32), hole), by or eraser.kind
    report = {"kind": "erase", "by": by, "box": list(place.box01_xyxy), "pixels": int(edit.sum())}
    return Patch.of(image, depth_01, edit, edit, places={}, gone=[name], report=report)


def paint_text(
    name: str, masks: list[np.ndarray], depth: float | None, settings: PaintSettings, scene: JobScene,
    networks: JobNetworks, gone: list[str] | None = None,
) -> Patch:  # fmt: skip
    """Masks (H, W) painted by prompts, as inpainting.paint does it; the depth there is estimated anew."""
    if depth is not None:
        front = scene.nearer(depth, depth)
        masks = [mask & ~front for mask in masks]
        if not all(mask.any() for mask in masks):
            raise ValueError(f"nearer objects hide all of it at depth {depth:g}")
    regions = pair_masks(masks, settings.prompts, settings.negatives)
    painter, silent = networks.once(load_painter, settings, PAINTER_KEYS), Monitor(progress=False)
    result = paint_regions(settings, scene.image, regions, painter, silent)
    edit = result.edit_mask if settings.options.paste_back else np.ones(scene.image.size, bool)
    depth_01 = scene.depth_01
    assert networks.models is not None  # of the background
    new_01 = networks.models.depth.estimate(result.images[0])
    if not edit.all() and np.ptp(new_01[~edit]) > 0:
        slope, shift = np.polyfit(new_01[~edit], depth_01[~edit], 1)
        depth_01 = np.where(edit, np.clip(slope * new_01 + shift, 0, 1), depth_01).astype(np.float32)
    box = box_to_01(bbox_of_mask(edit), scene.image.size)
    place = Place(box, *depth_in_box(depth_01, box, edit))
    report = {"kind": "text", "prompts": list(settings.prompts), "box": list(box), "seed": settings.seed}
    return Patch.of(
        result.images[0], depth_01, edit, edit, places={name: place}, gone=gone or [], report=report
    )
