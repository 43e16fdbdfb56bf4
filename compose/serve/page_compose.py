"""The tab of the page that puts an object into a background."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from compose import load_models
from compose.preview import SIDE
from compose.serve import page
from compose.serve.desk import Desk, anywhere
from compose.serve.jobs import Job, JobQueue
from compose.serve.settings import ServeSettings
from compose.serve.uploads import public
from compose.serve.work import Networks, compose_work, places_of
from compose.settings import ComposeSettings
from compose.sheet import on_white
from inpainting.prompts import paint_masks
from ldm.images import fitted, resize
from llava_bifrost.draw import COLOURS

PLACE, NAME, MASK = "place the object", "name a thing", "paint the target mask"
FIXES = {"add by click": (True, True), "remove by click": (False, True)}  # adds, finds what is alike
FIXES |= {"paint in": (True, False), "rub out": (False, False)}
CLICK = 0.012  # radius of a click, of the longer side; chosen: a fingertip on a phone
TINT, PALE = 0.55, 0.25  # opacity of the target mask, and of what is not the object; chosen
NAMED, EDGE = "#2b6cb0", (232, 64, 42)
CONTROLS: tuple[str, ...] = (
    "mode",
    "num_samples",
    "seed",
    "steps",
    "guidance",
    "detail",
    "strength",
    "init",
    "scheduler",
)
CONTROLS += ("detail_weight", "depth_weight", "compat")
PROPOSED = 5  # places; chosen


def scene(desk: Desk, tool: str, view: str, mode: str) -> list[Any]:
    """Values of the surface, of the preview in words, of the depth slider, and whether it is the ground's."""
    value, words = page.surface_value("background", "a background"), ""
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
    value = page.surface_value("object", "an object", tall=0.4)
    if desk.item is None:
        return value
    image_u8 = resize(desk.item.rgb_u8, fitted(desk.item.size, SIDE))
    cut = resize(desk.cut.astype(bool), image_u8.shape[:2])
    image_u8 = cv2.addWeighted(image_u8, PALE, on_white(image_u8, cut), 1 - PALE, 0)
    edges, _ = cv2.findContours(cut.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    image_u8 = cv2.drawContours(image_u8, edges, -1, EDGE, 2)
    adds, finds = FIXES[fix]
    colour, tool = "#e8402a" if adds else "#444444", "point" if finds else "brush"
    return value | {"image": page.as_url(image_u8), "tool": tool, "radius": page.BRUSH, "colour": colour}


def composite_in_words(report: dict[str, Any]) -> str:
    """The report of a composite, for people."""
    changed = sum(drift["changed_outside"] for drift in report["drift"])
    depth, box = report["depth"], ", ".join(f"{value:.3f}" for value in report["box"])
    lines = [
        f"**{100 * report['visible_fraction']:.0f} % visible, {changed} pixels changed outside**",
        f"box {box}; depth {depth['far']:.2f} to {depth['near']:.2f} ({depth['source']})",
    ]
    clauses = report.get("placement", {}).get("satisfied", {})
    lines += [f"this place is not {clause}" for clause, holds in clauses.items() if not holds]
    lines += [f"the outline may be wrong: {doubt}" for doubt in report["object_mask_doubts"]]
    return "  \n".join([*lines, f"{report['seconds']['total']:.1f} s on {report['device']}"])


def nothing(desk: Desk, looks: Sequence[str]) -> None:
    """Only show the desk again."""


class ComposeTab:
    """Its components, and what their events do."""

    def __init__(self, queue: JobQueue, settings: ServeSettings, desk: gr.State) -> None:
        self.queue, self.server, self.desk = queue, settings, desk
        self.uploads: dict[str, gr.UploadButton] = {}
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=320):
                self.place = page.surface("background", "a background")
                self.words = gr.Markdown(elem_id="visible")
                self.buttons(background="Background", background_depth="Depth map", target_mask="Target mask")
                with gr.Row():
                    self.tool = gr.Radio([PLACE, NAME, MASK], value=PLACE, label="Drag or click to", scale=2)
                    self.view = gr.Radio(["scene", "depth"], value="scene", label="Show", min_width=220)
                with gr.Row(visible=False) as self.naming:
                    about = "What the box shows; then press Enter"
                    self.name = gr.Textbox(label=about, placeholder="sofa", scale=3, elem_id="name")
                    self.forget = gr.Button("Forget all names", scale=1)
                self.results = page.Results(queue, desk)
            with gr.Column(scale=2, min_width=320):
                self.item = page.surface("object", "an object", tall=0.4)
                self.buttons(object="Object", object_mask="Its mask", object_depth="Its depth")
                self.buttons(replay="Earlier result")
                self.fix = gr.Radio(list(FIXES), value="add by click", label="Correct the outline")
                about = "Place the dog behind the sofa"
                self.sentence = gr.Textbox(
                    label="Where, in a sentence", placeholder=about, elem_id="sentence"
                )
                self.ask = gr.Button("Propose places", elem_id="propose")
                self.depth = gr.Slider(0, 1, 0.5, step=0.005, label="Depth, 1 = nearest", elem_id="depth")
                self.ground = gr.Checkbox(True, label="Depth of the ground at the foot of the box")
                with gr.Accordion("Settings", open=False):
                    self.controls = page.controls_of(ComposeSettings, CONTROLS)
                with gr.Row():
                    self.go = gr.Button("Compose", variant="primary", elem_id="compose")
                    self.cancel = gr.Button("Cancel", elem_id="cancel")
        self.looks = [desk, self.tool, self.view, self.controls[0], self.fix]
        self.scene = [self.place, self.words, self.depth, self.ground]
        self.wire()

    def buttons(self, **labels: str) -> None:
        """A row of buttons that take files; they have the names of settings."""
        with gr.Row():
            for name, label in labels.items():
                look: dict[str, Any] = {"size": "sm", "min_width": 90, "file_types": ["image"]}
                self.uploads[name] = gr.UploadButton(label, elem_id=name, **look)

    def show(self, desk: Desk, tool: str, view: str, mode: str, fix: str) -> list[Any]:
        """Values of both surfaces and what belongs to them."""
        return [cutout(desk, fix), *scene(desk, tool, view, mode)]

    def wire(self) -> None:
        """What happens at which event."""

        def on(event: Any, act: Callable[..., Any], *more: Any, **how: Any) -> Any:
            parts, show = [self.item, *self.scene], self.show
            if "queue" in how:  # these are frequent, and leave the object as it is
                parts, show = self.scene, lambda desk, *looks: scene(desk, *looks[:3])
            return page.connect(event, act, show, self.looks, parts, *more, **how)

        on(self.place.drag, self.drawn, drawn=True, **page.FREQUENT)
        on(self.place.draw, self.drawn, drawn=True, trigger_mode="multiple")
        on(self.item.draw, self.corrected, drawn=True, trigger_mode="multiple")
        on(self.depth.input, lambda desk, looks, d: desk.move(d), self.depth, **page.FREQUENT)
        on(
            self.ground.input,
            lambda desk, looks, d, low: desk.move(None if low else d),
            self.depth,
            self.ground,
        )
        on(self.name.submit, lambda desk, looks, text: desk.name(text), self.name).success(
            lambda: "", None, self.name, **page.EVENT
        )
        on(self.forget.click, lambda desk, looks: desk.forget())
        for part in (self.tool, self.view, self.fix, self.controls[0]):
            on(part.input, nothing)
        self.tool.input(lambda tool: gr.Row(visible=tool == NAME), self.tool, self.naming, **page.EVENT)
        for name, button in self.uploads.items():
            if name != "replay":
                event = on(button.upload, partial(self.take, name), button)
            else:
                back = [self.results.words, self.sentence, *self.controls]
                event = button.upload(page.in_words(self.replayed), [self.desk, button], back, **page.EVENT)
            if name in ("background", "replay"):
                status = self.results.status
                event = event.success(self.estimate, self.desk, status, **page.EVENT)
                on(event.success, nothing)
        given = [self.desk, self.sentence, *self.controls]
        event = self.ask.click(self.propose, given, self.results.status, **page.EVENT)
        on(event.success, nothing)
        self.go.click(self.compose, given, self.results.parts, scroll_to_output=True, **page.EVENT)
        self.cancel.click(partial(page.cancel, self.queue), self.desk, **page.EVENT)

    def drawn(self, desk: Desk, event: gr.EventData, looks: Sequence[str]) -> None:
        """A box, a click or a stroke on the scene."""
        if looks[0] == MASK:
            desk.paint_target(event.points, event.radius)
        else:
            desk.draw(looks[0] == NAME, event.box, event.points)

    def corrected(self, desk: Desk, event: gr.EventData, looks: Sequence[str]) -> None:
        """A click or a stroke on the object."""
        adds, finds = FIXES[looks[-1]]
        desk.correct(event.points, CLICK if finds else event.radius, adds, finds)

    def take(self, name: str, desk: Desk, looks: Sequence[str], path: str) -> None:
        """A file for a setting."""
        if note := desk.take(name, page.checked(Path(path), self.server)):
            gr.Info(note)

    def replayed(self, desk: Desk, path: str) -> list[Any]:
        """All settings of an earlier result."""
        values, missing = desk.replay(Path(path))
        desk.carried = {name: value for name, value in desk.carried.items() if name not in CONTROLS}
        text = "All settings of the image are back."
        if missing:
            text += f" Its {' and '.join(missing)} must be given again: drop the same file."
        return [
            text,
            values["instruction"] or "",
            *("" if values.get(name) is None else values[name] for name in CONTROLS),
        ]

    async def estimate(self, desk: Desk, request: gr.Request) -> AsyncIterator[str]:
        """The depth of a background that has none yet."""
        if (background := desk.background) is None or desk.depth_01 is not None:
            return
        settings = anywhere(desk.layers)

        def work(job: Job, networks: Networks) -> dict[str, Any]:
            networks.models = load_models(replace(settings, device=networks.device), networks.models)
            desk.estimated(background, networks.models.depth.estimate(background.rgb_u8))
            return {}

        async for text in page.follow(self.queue, page.open_job(self.queue, desk, "depth", request), work):
            yield text

    def begin(
        self, desk: Desk, kind: str, request: gr.Request, sentence: str, controls: Sequence[Any]
    ) -> tuple[ComposeSettings, Job]:
        """A job with the visitor's files."""

        def make(desk: Desk, files: Mapping[str, Path] | None) -> tuple[ComposeSettings, dict[str, Path]]:
            given = page.values_of(ComposeSettings, CONTROLS, controls)
            settings = desk.settings({**given, **(files or {})}, sentence)
            return settings, settings.input_files

        return page.begin(self, desk, kind, request, make)

    async def propose(
        self, desk: Desk, request: gr.Request, sentence: str, *controls: Any
    ) -> AsyncIterator[str]:
        """Places for the sentence, drawn on the scene."""
        settings, job = self.begin(desk, "place", request, sentence or " ", controls)
        settings = replace(settings, candidates=PROPOSED)

        def work(job: Job, networks: Networks) -> dict[str, Any]:
            found = places_of(settings, networks, desk.depth_01)
            desk.records = [public(found.record(index)) for index in range(len(found.candidates))]
            desk.choose(0)
            return {}

        async for text in page.follow(self.queue, job, work):
            yield text

    async def compose(
        self, desk: Desk, request: gr.Request, sentence: str, *controls: Any
    ) -> AsyncIterator[list[Any]]:
        """The composite, at the place that is shown, or where the sentence says."""
        placed = desk.box is not None or desk.target is not None
        settings, job = self.begin(desk, "compose", request, "" if placed else sentence, controls)
        work, before = compose_work(settings, sheet=True, placement=desk.record), desk.files["background"]
        async for update in self.results.watch(desk, job, work, before, composite_in_words):
            yield update
