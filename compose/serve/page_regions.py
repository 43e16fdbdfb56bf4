"""The tab of the page that fills masks of an image, each with its own prompt.

Legend: h w pixels of the image.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from compose.preview import SIDE
from compose.serve import page
from compose.serve.desk import Visit, stroke_mask
from compose.serve.settings import filled
from compose.serve.work import paint_work
from inpainting.dream import DreamSettings
from inpainting.prompts import paint_masks, palette, rgb_of_color, split_colors
from ldm.decode import LoadedImage
from ldm.images import GRAY_TOLERANCE, fitted, read_image, read_mask, resize, write_mask
from ldm.settings.config import to_plain

TINT = 0.6  # opacity of the masks on the screen; chosen
CONTROLS = ("num_samples", "seed", "steps", "guidance", "strength", "negative")
Table = list[list[str]]  # a row for each region: its name, prompt and negative prompt
# The browser changes the table itself: it alone knows what is typed meanwhile, which stays.
ROWS = """({names, prompts}, table) => {
  const old = Object.fromEntries(table.data.map((row) => [row[0], row]));
  const data = names.map((name) => [name, old[name]?.[1] || prompts[name] || '', old[name]?.[2] || '']);
  return JSON.stringify(data) === JSON.stringify(table.data) ? {__type__: 'update'} : {...table, data};
}"""


class RegionsDesk(Visit):
    """The image and masks that one visitor prepares. ValueError for what the visitor can mend."""

    def __init__(self) -> None:
        super().__init__()
        self.path = Path()
        self.image: LoadedImage | None = None
        self.masks: list[np.ndarray] = []  # (h, w) bool each

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
        """A stroke."""
        region, adds = act["means"]
        self.stroke(min(region, len(self.masks)), act["points"], act["radius"], adds)

    @property
    def names(self) -> list[str]:
        """Of the regions, and of the next one."""
        return [f"{number} {name}" for number, name in enumerate(palette(len(self.masks) + 1), 1)]

    def rows(self, **prompts: str) -> dict[str, Any]:
        """For `ROWS`. prompts: name of a region -> what was written for it"""
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
    """The report of a painting, for people."""
    changed = sum(drift["changed_outside"] for drift in report["drift"])
    inside = 100 * report["drift"][0]["edit_fraction"]
    text = f"{changed} pixels changed outside the masks, which cover {inside:.1f} % of the image"
    return [text, f"{report['seconds']['total']:.1f} s on {report['device']}"]


class RegionsTab:
    """Its components, and what their events do."""

    def __init__(self, site: page.Site, painting: gr.State) -> None:
        self.site = site
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                several = f"{page.IMAGE_FILES} multiple"
                self.canvas = site.surface({"painting": "Image", "masks": "Masks"}, "an image", more=several)
                clear = gr.Button("No masks", size="sm")
                status = gr.HTML()
            with gr.Column(scale=2, min_width=320):
                about = "The brush paints region"
                self.region = gr.Dropdown([("1 red", 0)], value=0, label=about, elem_id="region")
                adds = gr.Checkbox(True, label="Add to it (off: rub out)")
                self.table = gr.Dataframe(
                    [["1 red", "", ""]], interactive=True, type="array", wrap=True, static_columns=[0],
                    headers=["region", "prompt", "negative"], elem_id="prompts",
                    label="A prompt that is empty is written by the model",
                )  # fmt: skip
                with gr.Accordion("Settings", open=False):
                    controls = page.controls_of(DreamSettings, CONTROLS)
                write = gr.Button("Write the empty prompts", elem_id="write")
                with gr.Row():
                    go = gr.Button("Paint", variant="primary", elem_id="paint")
                    cancel = gr.Button("Cancel")

        def on(event: Any, act: Callable[..., Any], *more: Any, **how: Any) -> None:
            outputs = [self.canvas, self.region, rows]
            filled_in(page.connect(event, act, self.show, own, outputs, *more, **log, **how))

        def filled_in(event: Any) -> None:
            event.success(None, [rows, self.table], self.table, js=ROWS, api_visibility="private")

        own, log = [painting, gr.JSON(visible=False), self.region, adds], {"js": page.log_of("painting")}
        rows = gr.JSON(visible="hidden")  # for `ROWS`
        on(self.canvas.draw, page.nothing, trigger_mode="multiple")
        on(self.region.input, page.nothing)
        on(self.canvas.painting, self.take, trigger_mode="multiple")
        on(self.canvas.masks, self.load, trigger_mode="multiple")
        on(clear.click, lambda painting, event, looks: painting.masks.clear())
        given = [*own, self.table, *controls]
        for button in (write, go):
            how = {**page.EVENT, **log, "scroll_to_output": button is go}
            filled_in(button.click(self.run, given, [status, rows], **how))
        cancel.click(site.cancel, painting, **page.EVENT)

    def show(self, painting: RegionsDesk, region: int, adds: bool) -> list[Any]:
        """Values of surface, choice of regions, which stays if it can, and their rows."""
        most = len(painting.masks)
        choices = [(name, number) for number, name in enumerate(painting.names)]
        own: dict[str, Any] = {"value": most} if region > most else {}
        return [canvas(painting, min(region, most)), gr.update(choices=choices, **own), painting.rows()]

    def take(self, painting: RegionsDesk, event: gr.EventData, looks: Sequence[Any]) -> None:
        """An image from a file."""
        painting.take(self.site.files_of(painting, event)[0])

    def load(self, painting: RegionsDesk, event: gr.EventData, looks: Sequence[Any]) -> None:
        """Masks from files."""
        for path in self.site.files_of(painting, event):
            painting.load(path)

    async def run(
        self,
        painting: RegionsDesk,
        log: Any,
        event: gr.EventData,
        request: gr.Request,
        *values: Any,
    ) -> AsyncIterator[list[Any]]:
        """All regions in one pass, and prompts for those that have none; the button "write": only these."""
        _, _, table, *controls = values
        paints = event.target is not None and event.target.elem_id == "paint"
        with page.in_words(painting, log):
            given = page.values_of(DreamSettings, CONTROLS, controls)
            names, typed = painting.names[:-1], {name: texts for name, *texts in table}
            texts = [typed.get(name, ["", ""]) for name in names]
            given["prompts"] = [prompt for prompt, _ in texts]
            given |= {"negatives": [text for _, text in texts]} if any(text for _, text in texts) else {}
            files = painting.files()
            image, *masks = files.values()
            given |= {"image": image, "masks": masks}
            settings = filled(DreamSettings, self.site.settings.paint_config, to_plain(given))
            job, stored = self.site.begin(painting, "paint", request, files)
            image, *masks = stored.values()
            own = replace(settings, image=image, masks=tuple(masks))
            work = partial(paint_work, own, paints=paints, page=True)
        async for text in self.site.follow(job, work, painting_in_words if paints else None):
            result = job.result or {"prompts": []}
            rows = zip(names, texts, result.get("report", result)["prompts"], strict=False)
            written = {name: row["prompt"] for name, (prompt, _), row in rows if not prompt}
            yield [text, painting.rows(**written)]
