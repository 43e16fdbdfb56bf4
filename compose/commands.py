"""What `image` and `replay` of run_inference.py do; jobs: `compose.layering`, batches: `compose.batch`."""

import logging
import sys
from dataclasses import replace
from functools import partial
from typing import Any

from compose import compose, load_models
from compose.layers import save_layers
from compose.models import Models
from compose.recipe import check_unchanged, settings_of_recipe
from compose.settings import INPUT_FILES, CompositeSettings, ReplaySettings
from compose.sheet import save_sheet
from ldm.decode import opened
from ldm.denoise import Step
from ldm.files import file_sha256, set_aside, write_atomic
from ldm.images import encode_png
from ldm.result import beside, log_result, output_paths, read_recipe, result_paths
from ldm.settings.config import flag_name
from ldm.temporary import IN_MEMORY, as_file

logger = logging.getLogger(__name__)


def run_image(settings: CompositeSettings) -> dict[str, Any]:
    """Put an object into a background at a box and a depth, or where a sentence says.

    Writes an image that carries its recipe, a JSON report beside it, and a contact sheet.
    """
    paths = output_paths(settings.out, settings.kept_samples, settings.input_files.values())
    models = load_models(settings)
    previews = partial(write_preview, settings, models) if settings.save_steps else None
    result = compose(settings, models, on_step=previews, progress=sys.stderr.isatty())
    for index, path in enumerate(paths):
        result.save(index, path, overwrite=settings.overwrite)
        if settings.layers:
            logger.info("layers:  %s", save_layers(result, index, path, settings.overwrite))
    sheet = save_sheet(result, settings.out, settings.overwrite) if settings.sheet else None
    if result.changed_outside:
        logger.warning("%d pixels changed outside the edit region", result.changed_outside)
    return log_result(paths, result.report, result.summary, sheet)


def write_preview(settings: CompositeSettings, models: Models, step: Step) -> None:
    """Decode the first sample every few steps, and at the last, into NAME_steps/step_000.png.

    The folder of another run is renamed at the first preview, or its previews are removed (`overwrite`).
    """
    folder, number = beside(settings.out, "_steps"), step.index + 1
    if number % settings.save_steps and number < step.total:
        return
    path = folder / f"step_{number:03d}.png"
    data = encode_png(models.decoder(settings.preview_vae).decode_u8(step.latents[:1]))
    earlier = list(folder.glob("step_*.png")) if number <= settings.save_steps else []
    if settings.overwrite:
        for old in earlier:
            old.unlink()
    elif earlier and not (path in earlier and path.read_bytes() == data):  # else of this run, interrupted
        set_aside([folder])
    write_atomic(path, data)


def replay(options: ReplaySettings) -> dict[str, Any]:
    """Paint an image again from the recipe inside it.

    Gives the same bytes on the same machine; refuses when an input or the weights have changed. Where an
    input has moved, the pixels are the same, and the new recipe names the new place.
    """
    image, out = options.image, options.out or beside(options.image, "_replay.png")
    names = (*INPUT_FILES, "model", "depth_model")
    given = {name: path for name in names if (path := getattr(options, name)) is not None}
    if read_recipe(image).get("command") == "job":
        from compose.layering import replay_job  # not for one object

        return replay_job(image, out, given, options.overwrite)
    settings, recipe = settings_of_recipe(image)
    if unused := [name for name in given if recipe["settings"].get(name) is None]:
        raise ValueError(f"{image}: was made without {', '.join(map(flag_name, unused))}")
    for name, path in given.items():
        held_in_memory = str(recipe["settings"][name]).startswith(IN_MEMORY)
        if held_in_memory and file_sha256(path) != recipe["inputs"][name]:  # an array, not an uploaded file
            with opened(path) as held:
                given[name] = as_file(held, name)
    settings = replace(settings, **given)
    output_paths(out, 1, settings.input_files.values())
    models = load_models(settings)
    check_unchanged(image, recipe, settings, models)
    result = compose(settings, models, progress=sys.stderr.isatty())
    result.with_placement(recipe.get("placement")).save(recipe["sample"], out, overwrite=options.overwrite)
    logger.info("image:   %s\nreport:  %s", *result_paths(out))
    return {**result.report, "files": [out.as_posix()]}
