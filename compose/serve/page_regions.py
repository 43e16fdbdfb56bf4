"""The tab of the page that fills masks of an image, each with its own prompt.

Legend: h w pixels of the image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from compose.serve import page
from compose.serve.desk import Visit, stroke_mask
from compose.serve.jobs import Work
from compose.serve.page import Events, nothing, status_of_work
from compose.serve.settings import filled
from compose.serve.work import paint_work
from compose.sources import SIDE
from inpainting.dream import DreamSettings
from inpainting.prompts import paint_masks, palette, rgb_of_color, split_colors
from ldm.decode import LoadedImage
from ldm.files import read_text
from ldm.images import GRAY_TOLERANCE, fitted, read_image, read_mask, resize, write_mask
from ldm.settings.config import to_plain

TINT = 0.6  # opacity of the masks on the screen; chosen
CONTROLS = ("num_samples", "seed", "steps", "guidance", "strength", "negative")
Table = list[list[str]]  # a row for each region: its name, prompt and negative prompt
ROWS = read_text(Path(__file__).with_name("rows.js"))


class RegionsDesk(Visit):
    """The image and masks that one visitor prepares. ValueError for what the visitor can mend."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path()
        self.image: LoadedImage | None = None
        self.masks: list[np.ndarray] = []  # (h, w) bool each
        self.lacking: dict[str, list[str]] = {}  # job -> its regions, "" for those that had a prompt

    def take(self, path: Path) -> None:
        """A new image; masks of another size are forgotten."""
        self.image, self.path = (image := read_image(path)), path
        self.masks = [mask for mask in self.masks if mask.shape == image.size]

    def load(self, path: Path) -> None:
        """Masks from a file: white is one, each colour is one."""
        if self.image is None:
            raise ValueError("give the image first")
        image = read_image(path)
        if np.ptp(image.rgb_u8, axis=2).max() <= GRAY_TOLERANCE:
            self.masks.append(read_mask(path, size=self.image.size))
        elif image.size != self.image.size:
            raise ValueError(f"{path.name} must have the size of the image")
        else:
            self.masks += split_colors(image)

    def stroke(self, region: int, points: Sequence[Sequence[float]], radius: float, adds: bool) -> None:
        """Add a stroke to a region, or take it away; one more than there are is a new one."""
        assert self.image is not None
        stroke = stroke_mask(self.image.size, points, radius)
        if region == len(self.masks):
            self.masks.append(np.zeros_like(stroke))
        self.masks[region] = self.masks[region] | stroke if adds else self.masks[region] & ~stroke
        self.masks = [mask for mask in self.masks if mask.any()]

    def act(self, surface: str, act: Mapping[str, Any]) -> None:
        region, adds = act["means"]
        self.stroke(min(region, len(self.masks)), act["points"], act["radius"], adds)

    @property
    def names(self) -> list[str]:
        """Of the regions, and of the next one."""
        return [f"{number} {name}" for number, name in enumerate(palette(len(self.masks) + 1), 1)]

    def rows(self, written: bool = False) -> dict[str, Any]:
        """For `ROWS`. written: with what the last job has written"""
        prompts = dict[str, str]()
        for kind in self.lacking if written else ():
            result = self.jobs[kind].result or {"prompts": []}
            rows = zip(self.lacking[kind], result.get("report", result)["prompts"], strict=False)
            prompts |= {name: row["prompt"] for name, row in rows if name}
        return {"names": self.names[: max(1, len(self.masks))], "prompts": prompts}

    def files(self) -> dict[str, Path]:
        """The image, then its masks in order."""
        if self.image is None or not self.masks:
            raise ValueError("give an image, and paint or load a mask")
        files = {"image": self.path}
        for number, mask in enumerate(self.masks, 1):
            files[f"mask {number}"] = Path(self.own.name) / f"{number}.png"
            write_mask(files[f"mask {number}"], mask)
        return files


def canvas(painting: RegionsDesk, region: int) -> dict[str, Any]:
    """The value of the surface: the image under its masks."""
    if painting.image is None:
        return {"done": painting.done["painting"]}
    image_u8 = resize(painting.image.rgb_u8, fitted(painting.image.size, SIDE))
    masks = [resize(mask, image_u8.shape[:2]) for mask in painting.masks]
    image_u8 = paint_masks(image_u8, masks, palette(len(masks)), [TINT] * len(masks))
    colour = "#{:02x}{:02x}{:02x}".format(*rgb_of_color(palette(region + 1)[region]))
    value = {"image": page.as_url(image_u8), "tool": "brush", "radius": page.BRUSH, "colour": colour}
    return value | {"done": painting.done["painting"]}


def painting_in_words(report: dict[str, Any]) -> list[str]:
    changed = sum(drift["changed_outside"] for drift in report["drift"])
    inside = 100 * report["drift"][0]["edit_fraction"]
    text = f"{changed} pixels changed outside the masks, which cover {inside:.1f} % of the image"
    return [text, f"{report['seconds']['total']:.1f} s on {report['device']}"]


class RegionsTab:
    def __init__(self, site: page.Site, painting: gr.State) -> None:
        self.site = site
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                several = f"{page.IMAGE_FILES} multiple"
                self.canvas = site.surface({"painting": "Image", "masks": "Masks"}, "an image", more=several)
                clear = gr.Button("No masks", size="sm")
                status = status_of_work()
            with gr.Column(scale=2, min_width=320):
                about = "The brush paints region"
                self.region = gr.Dropdown([("1 red", 0)], value=0, label=about, elem_id="region")
                adds = gr.Checkbox(True, label="Add to it (off: rub out)")
                self.table = gr.Dataframe(
                    [["1 red", "", ""]], interactive=True, type="array", wrap=True, static_columns=[0],
                    headers=["region", "prompt", "negative"], elem_id="prompts",
                    label="A prompt that is empty is written by the model")  # fmt: skip
                with gr.Accordion("Settings", open=False):
                    controls = page.controls_of(DreamSettings, CONTROLS)
                write = gr.Button("Write the empty prompts", elem_id="write")
                with gr.Row():
                    go = gr.Button("Paint", variant="primary", elem_id="paint")
                    cancel = gr.Button("Cancel")

        looks, rows = [painting, self.region, adds], gr.JSON(visible="hidden")  # for `ROWS`
        events = Events(status, looks, ["painting"], partial(site.told, painting_in_words))

        def on(event: Any, act: Callable[..., Any]) -> None:
            filled_in(events.on(event, act, self.show, [self.canvas, self.region, rows]))

        def filled_in(event: Any) -> None:
            event.success(None, [rows, self.table], self.table, js=ROWS, api_visibility="private")

        for event in (self.canvas.draw, self.region.input):
            on(event, nothing)
        on(self.canvas.painting, lambda painting, event: painting.take(site.files_of(painting, event)[0]))
        on(self.canvas.masks, self.load)
        on(clear.click, lambda painting, event: painting.masks.clear())
        for kind, button in {"write": write, "paint": go}.items():
            act, how = partial(self.run, kind), {"scroll_to_output": button is go}
            events.on(button.click, act, lambda *looks: [], [], self.table, *controls, **how)
        filled_in(events.on(status.ask, nothing, lambda painting, *looks: [painting.rows(True)], [rows]))
        events.on(cancel.click, lambda painting, event: site.cancel(painting), lambda *looks: [], [])

    def show(self, painting: RegionsDesk, region: int, adds: bool) -> list[Any]:
        """Values of surface, choice of regions, which stays if it can, and their rows."""
        most = len(painting.masks)
        choices = [(name, number) for number, name in enumerate(painting.names)]
        own: dict[str, Any] = {"value": most} if region > most else {}
        return [canvas(painting, min(region, most)), gr.update(choices=choices, **own), painting.rows()]

    def load(self, painting: RegionsDesk, event: gr.EventData) -> None:
        for path in self.site.files_of(painting, event):
            painting.load(path)

    def run(self, kind: str, painting: RegionsDesk, event: Any, table: Table, *controls: Any) -> None:
        """All regions in one pass, and prompts for those that have none; kind "write": only these."""
        given = page.values_of(DreamSettings, CONTROLS, controls)
        typed = {name: texts for name, *texts in table}
        texts = {name: typed.get(name, ["", ""]) for name in painting.names[:-1]}
        given["prompts"], negatives = map(list, zip(*texts.values(), strict=True)) if texts else ([], [])
        given |= {"negatives": negatives} if any(negatives) else {}
        files = painting.files()
        image, *masks = files.values()
        given |= {"image": image, "masks": masks}
        settings = filled(DreamSettings, self.site.settings.paint_config, to_plain(given))
        work = partial(paint_work, paints=kind == "paint", page=True)

        def begun(own: dict[str, Path]) -> Work:
            image, *masks = own.values()
            return partial(work, replace(settings, image=image, masks=tuple(masks)))

        if self.site.begin(painting, kind, files, begun):
            painting.lacking[kind] = ["" if prompt else name for name, (prompt, _) in texts.items()]
