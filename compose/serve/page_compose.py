"""The tab of the page that puts an object into a background."""

import html
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import gradio as gr
import numpy as np

from compose import load_models
from compose.preview import SIDE
from compose.serve import page
from compose.serve.desk import FIXES, MASK, NAME, PLACE, Desk
from compose.serve.jobs import Job
from compose.serve.settings import anywhere
from compose.serve.uploads import public
from compose.serve.work import Networks, compose_work, places_of
from compose.settings import INPUT_FILES, ComposeSettings
from compose.sheet import on_white
from inpainting.prompts import paint_masks
from ldm.images import fitted, resize
from llava_bifrost.draw import COLOURS

TINT, PALE = 0.55, 0.25  # opacity of the target mask, and of what is not the object; chosen
NAMED, EDGE = "#2b6cb0", (232, 64, 42)
CONTROLS: tuple[str, ...] = ("mode", "num_samples", "seed", "steps", "guidance", "detail", "strength", "init")
CONTROLS += ("scheduler", "detail_weight", "depth_weight", "compat")
PROPOSED = 5  # places; chosen
DEPTH = """(d, low) =>
  document.querySelector('#background-canvas canvas').act('drag', {depth: low ? null : d}, 'depth')"""


def scene(desk: Desk, tool: str, fix: str, view: str, mode: str) -> list[Any]:
    """Values of the surface, of the preview in words, of the depth slider, and whether it is the ground's."""
    value, words = dict[str, Any](done=desk.done["background"]), ""
    if desk.background is not None:
        words = "The depth is being estimated" if desk.depth_01 is None else ""
        size = fitted(desk.background.size, SIDE)
        if view == "depth" and desk.depth_01 is not None:
            gray_u8 = (255 * resize(desk.depth_01, size)).astype(np.uint8)
            image_u8 = cv2.applyColorMap(gray_u8, cv2.COLORMAP_INFERNO)[..., ::-1]
        elif (shown := desk.preview(mode)) is not None:
            image_u8, (far, near) = shown.image_u8, shown.depth_range
            words = f"**{100 * shown.visible_fraction:.0f} % visible**, depth {far:.2f} to {near:.2f}"
        else:
            image_u8 = resize(desk.background.rgb_u8, size)
        if desk.target is not None and tool == MASK:
            target = resize(desk.target, size)
            image_u8 = paint_masks(image_u8, [target], ["magenta"], [TINT])
        marks = [{"box": box, "label": name, "colour": NAMED} for name, box in desk.named.items()]
        for index in range(len(desk.records) if tool == PLACE else 0):
            colour = "#{:02x}{:02x}{:02x}".format(*COLOURS[index % len(COLOURS)])
            marks.append({"box": desk.place(index), "label": str(index + 1), "colour": colour})
        box = {PLACE: desk.box, NAME: desk.pending, MASK: None}[tool]
        value |= {"image": page.as_url(image_u8), "tool": "brush" if tool == MASK else "box", "box": box}
        value |= {"marks": marks, "radius": page.BRUSH, "colour": "#ff00ff"}
    return [value, words, round(desk.centre(), 3), desk.depth is None]


def cutout(desk: Desk, fix: str) -> dict[str, Any]:
    """Value of the object's surface: what is cut out, and its edge."""
    if desk.item is None:
        return {"done": desk.done["object"]}
    image_u8 = resize(desk.item.rgb_u8, fitted(desk.item.size, SIDE))
    cut = resize(desk.cut.astype(bool), image_u8.shape[:2])
    image_u8 = cv2.addWeighted(image_u8, PALE, on_white(image_u8, cut), 1 - PALE, 0)
    edges, _ = cv2.findContours(cut.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    image_u8 = cv2.drawContours(image_u8, edges, -1, EDGE, 2)
    adds, finds = FIXES[fix]
    colour, tool = "#e8402a" if adds else "#444444", "point" if finds else "brush"
    value = {"image": page.as_url(image_u8), "tool": tool, "radius": page.BRUSH, "colour": colour}
    return value | {"done": desk.done["object"]}


def composite_in_words(report: dict[str, Any]) -> list[str]:
    """The report of a composite, for people."""
    changed = sum(drift["changed_outside"] for drift in report["drift"])
    depth, box = report["depth"], ", ".join(f"{value:.3f}" for value in report["box"])
    clauses = report.get("placement", {}).get("satisfied", {})
    return [
        f"{100 * report['visible_fraction']:.0f} % visible, {changed} pixels changed outside",
        f"box {box}; depth {depth['far']:.2f} to {depth['near']:.2f} ({depth['source']})",
        *(f"this place is not {clause}" for clause, holds in clauses.items() if not holds),
        *(f"the outline may be wrong: {doubt}" for doubt in report["object_mask_doubts"]),
        f"{report['seconds']['total']:.1f} s on {report['device']}",
    ]


def both(desk: Desk, tool: str, fix: str, view: str, mode: str) -> list[Any]:
    """Values of both surfaces and what belongs to them."""
    return [cutout(desk, fix), *scene(desk, tool, fix, view, mode)]


class ComposeTab:
    """Its components, and what their events do."""

    def __init__(self, site: page.Site, desk: gr.State) -> None:
        self.site, self.desk = site, desk
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                inputs = {"background": "Background", "background_depth": "Depth map"}
                inputs |= {"target_mask": "Target mask", "replay": "Earlier result"}
                self.place = site.surface(inputs, "a background")
                self.words = gr.Markdown(elem_id="visible")
                with gr.Row():
                    self.tool = gr.Radio([PLACE, NAME, MASK], value=PLACE, label="Drag or click to", scale=2)
                    self.view = gr.Radio(["scene", "depth"], value="scene", label="Show", min_width=220)
                with gr.Row(visible=False) as self.naming:
                    about = "What the box shows; then press Enter"
                    self.name = gr.Textbox(label=about, placeholder="sofa", scale=3, elem_id="name")
                    self.forget = gr.Button("Forget all names", scale=1)
                self.note, self.status = gr.HTML(elem_id="note"), gr.HTML(elem_id="status")
            with gr.Column(scale=2, min_width=320):
                inputs = {"object": "Object", "object_mask": "Its mask", "object_depth": "Its depth"}
                self.item = site.surface(inputs, "an object", 0.4)
                self.fix = gr.Radio(list(FIXES), value="add by click", label="Correct the outline")
                about, shown = "Where, in a sentence", "Place the dog behind the sofa"
                self.sentence = gr.Textbox(label=about, placeholder=shown, elem_id="sentence")
                self.ask = gr.Button("Propose places", elem_id="propose")
                self.depth = gr.Slider(0, 1, 0.5, step=0.005, label="Depth, 1 = nearest", elem_id="depth")
                self.ground = gr.Checkbox(True, label="Depth of the ground at the foot of the box")
                with gr.Accordion("Settings", open=False):
                    self.controls = page.controls_of(ComposeSettings, CONTROLS)
                with gr.Row():
                    self.go = gr.Button("Compose", variant="primary", elem_id="compose")
                    self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.own = [desk, gr.JSON(visible=False), self.tool, self.fix]
        self.looks = [*self.own, self.view, self.controls[0]]
        self.scene = [self.place, self.words, self.depth, self.ground]
        self.wire()

    def wire(self) -> None:
        """What happens at which event."""

        log = {"js": page.log_of("background", "object")}

        def on(event: Any, act: Callable[..., Any], *more: Any, **how: Any) -> Any:
            return page.connect(event, act, both, self.looks, [self.item, *self.scene], *more, **log, **how)

        def estimated(event: Any) -> None:
            on(event.success(self.estimate, self.desk, self.status, **page.EVENT).success, page.nothing)

        frequent = {**log, **page.FREQUENT}  # and leaves the object as it is
        page.connect(self.place.drag, page.nothing, scene, self.looks, self.scene, **frequent)
        for surface in (self.place, self.item):
            on(surface.draw, page.nothing, trigger_mode="multiple")
        self.depth.input(None, self.depth, js=DEPTH, api_visibility="private")
        self.ground.input(None, [self.depth, self.ground], js=DEPTH, api_visibility="private")
        named = on(self.name.submit, lambda desk, event, looks, text: desk.name(text), self.name)
        named.success(lambda: "", None, self.name, **page.APART)
        on(self.forget.click, lambda desk, event, looks: desk.forget())
        for part in (self.tool, self.view, self.fix, self.controls[0]):
            on(part.input, page.nothing)
        self.tool.input(lambda tool: gr.Row(visible=tool == NAME), self.tool, self.naming, **page.APART)
        for name in INPUT_FILES:
            surface = self.item if name.startswith("object") else self.place
            given = on(getattr(surface, name), partial(self.take, name), trigger_mode="multiple")
            if name == "background":
                estimated(given)
        back = [self.note, self.sentence, *self.controls]
        estimated(self.place.replay(self.replayed, [self.desk], back, **page.EVENT))
        given, how = [*self.own, self.sentence, *self.controls], {**page.EVENT, **log}
        on(self.ask.click(self.propose, given, self.status, **how).success, page.nothing)
        self.go.click(self.compose, given, self.status, scroll_to_output=True, **how)
        self.go.click(lambda: "", None, self.note, **page.APART)
        self.cancel.click(self.site.cancel, self.desk, **page.EVENT)

    def take(self, name: str, desk: Desk, event: gr.EventData, looks: Sequence[str]) -> None:
        """A file for a setting."""
        if note := desk.take(name, self.site.files_of(desk, event)[0]):
            gr.Info(note)

    def replayed(self, desk: Desk, event: gr.EventData) -> list[Any]:
        """All settings of an earlier result."""
        with page.in_words(desk):
            values, missing = desk.replay(self.site.files_of(desk, event)[0])
        desk.carried = {name: value for name, value in desk.carried.items() if name not in CONTROLS}
        text = "All settings of the image are back."
        if missing:
            text += f" Its {' and '.join(missing)} must be given again: drop the same file."
        shown = ["" if (value := values.get(name)) is None else value for name in CONTROLS]
        return [html.escape(text), values["instruction"] or "", *shown]

    async def estimate(self, desk: Desk, request: gr.Request) -> AsyncIterator[Any]:
        """The depth of a background that has none yet."""
        if (background := desk.background) is None or desk.depth_01 is not None:
            yield gr.skip()  # else what is shown would go
            return
        settings = anywhere(desk.config)

        def work(job: Job, networks: Networks) -> dict[str, Any]:
            networks.models = load_models(replace(settings, device=networks.device), networks.models)
            desk.estimated(background, networks.models.depth.estimate(background))
            return {}

        with page.in_words(desk):
            job, _ = self.site.begin(desk, "depth", request, {})
        async for text in self.site.follow(job, work):
            yield text

    def begin(
        self, desk: Desk, kind: str, request: gr.Request, sentence: str, controls: Sequence[Any]
    ) -> tuple[Job, ComposeSettings]:
        """A job with the visitor's files."""
        with page.in_words(desk):
            given = page.values_of(ComposeSettings, CONTROLS, controls)
            settings = desk.settings(given, sentence)
            job, files = self.site.begin(desk, kind, request, settings.input_files)
            return job, replace(settings, **files)

    async def propose(self, desk: Desk, log: Any, request: gr.Request, *values: Any) -> AsyncIterator[str]:
        """Places for the sentence, drawn on the scene."""
        _, _, sentence, *controls = values
        with page.in_words(desk, log):
            pass  # the boxes of things
        job, settings = self.begin(desk, "place", request, sentence or " ", controls)
        settings = replace(settings, candidates=PROPOSED)

        def work(job: Job, networks: Networks) -> dict[str, Any]:
            found = places_of(settings, networks, desk.depth_01)
            desk.records = [public(found.record(index)) for index in range(len(found.candidates))]
            desk.choose(0)
            return {}

        async for text in self.site.follow(job, work):
            yield text

    async def compose(self, desk: Desk, log: Any, request: gr.Request, *values: Any) -> AsyncIterator[str]:
        """The composite, at the place that is shown, or where the sentence says."""
        _, _, sentence, *controls = values
        with page.in_words(desk, log):
            placed = desk.box is not None or desk.target is not None
            placement = desk.record
        job, settings = self.begin(desk, "compose", request, "" if placed else sentence, controls)
        work = partial(compose_work, settings, page=True, placement=placement)
        async for text in self.site.follow(job, work, composite_in_words):
            yield text
