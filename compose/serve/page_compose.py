"""The tab of the page that puts an object into a background."""

import contextlib
import html
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import gradio as gr
import numpy as np

from compose.models import JobNetworks
from compose.serve import page
from compose.serve.desk import FIXES, MASK, NAME, PLACE, Desk
from compose.serve.jobs import DEPTH, Job, QueueFull
from compose.serve.page import EVENT, Events, nothing, status_of_work
from compose.serve.settings import anywhere
from compose.serve.uploads import public
from compose.serve.work import compose_work, places_of
from compose.settings import INPUT_FILES, ComposeSettings
from compose.sheet import on_white
from compose.sources import SIDE
from inpainting.prompts import paint_masks
from ldm.images import fitted, resize
from llava_bifrost.language.answer import COLOURS

TINT, PALE = 0.55, 0.25  # opacity of the target mask, and of what is not the object; chosen
NAMED, EDGE = "#2b6cb0", (232, 64, 42)
CONTROLS: tuple[str, ...] = ("mode", "num_samples", "seed", "steps", "guidance", "detail", "strength", "init")
CONTROLS += ("shadow", "scheduler", "detail_weight", "depth_weight", "compat")
PROPOSED = 5  # places; chosen
DEPTH_ACT = """(d, low) =>
  document.querySelector('#background-canvas canvas').act('drag', {depth: low ? null : d}, 'depth')"""


def scene(desk: Desk, tool: str, fix: str, view: str, mode: str) -> list[Any]:
    """Values of the surface, of the preview in words, of the depth slider, and whether it is the ground's."""
    value, words, goes_on = dict[str, Any](done=desk.done["background"]), "", DEPTH in desk.work
    if desk.background is not None:
        if desk.depth_01 is None:
            words = "The depth is being estimated" if goes_on else "The depth could not be estimated: "
            words += "" if goes_on else html.escape(desk.jobs[DEPTH].error or "")
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
            image_u8 = paint_masks(image_u8, [resize(desk.target, size)], ["magenta"], [TINT])
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


def both(desk: Desk, *looks: str) -> list[Any]:
    return [cutout(desk, looks[1]), html.escape(desk.note), *scene(desk, *looks)]


class ComposeTab:
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
                self.note, self.status = gr.HTML(elem_id="note"), status_of_work("status")
            with gr.Column(scale=2, min_width=320):
                inputs = {"object": "Object", "object_mask": "Its mask", "object_depth": "Its depth"}
                self.item = site.surface(inputs, "an object", 0.4)
                self.fix = gr.Radio(list(FIXES), value="add by click", label="Correct the outline")
                about, shown = "Where, in a sentence", "Place the dog behind the sofa"
                self.sentence = gr.Textbox(label=about, placeholder=shown, elem_id="sentence")
                self.ask = gr.Button("Propose places", elem_id="propose")
                self.depth = gr.Slider(0, 1, 0.5, step=0.005, label="Depth, 1 = nearest", elem_id="depth")
                self.ground = gr.Checkbox(True, label="Depth of the ground at the foot of the box")
                with gr.Accordion("Settings") as heading:
                    self.controls = page.controls_of(ComposeSettings, CONTROLS)
                with gr.Row():
                    self.go = gr.Button("Compose", variant="primary", elem_id="compose")
                    self.cancel = gr.Button("Cancel", elem_id="cancel")
        # Were it closed before, the browser would make them when it opens, over what somebody types at once.
        site.ready[heading] = gr.update(open=False)
        self.looks = [desk, self.tool, self.fix, self.view, self.controls[0]]
        self.wire()

    def wire(self) -> None:
        events = Events(self.status, self.looks, ["background", "object"], self.go_on)
        scene_of = [self.place, self.words, self.depth, self.ground]
        shown = [self.item, self.note, *scene_of]

        def on(event: Any, act: Callable[..., Any], *more: Any) -> None:
            events.on(event, act, both, shown, *more)

        events.on(self.place.drag, nothing, scene, scene_of, trigger_mode="always_last")
        for event in (self.place.draw, self.item.draw, self.status.ask):
            on(event, nothing)
        self.depth.input(None, self.depth, js=DEPTH_ACT, api_visibility="private")
        self.ground.input(None, [self.depth, self.ground], js=DEPTH_ACT, api_visibility="private")
        name, named = (lambda desk, event, text: desk.name(text)), (lambda *looks: [*both(*looks), ""])
        events.on(self.name.submit, name, named, [*shown, self.name], self.name)
        on(self.forget.click, lambda desk, event: desk.forget())
        for part in (self.tool, self.view, self.fix, self.controls[0]):
            on(part.input, nothing)
        self.tool.input(lambda tool: gr.Row(visible=tool == NAME), self.tool, self.naming, **EVENT)
        for setting in INPUT_FILES:
            surface = self.item if setting.startswith("object") else self.place
            on(getattr(surface, setting), partial(self.take, setting))
        given = [self.sentence, *self.controls]
        back = lambda desk, *looks: [*both(desk, *looks[:-1], desk.back[1]), *desk.back]  # noqa: E731
        events.on(self.place.replay, self.replay, back, [*shown, *given])
        on(self.ask.click, self.propose, *given)
        note, below = (lambda desk, *looks: [html.escape(desk.note)]), {"scroll_to_output": True}
        events.on(self.go.click, self.compose, note, [self.note], *given, **below)
        on(self.cancel.click, lambda desk, event: self.site.cancel(desk))

    def go_on(self, desk: Desk) -> str:
        """Begin the depth of a background that has none, once the queue takes it; HTML of what goes on."""
        if (background := desk.background) is not None and DEPTH in desk.work:
            settings = anywhere(desk.config)

            def work(job: Job, networks: JobNetworks) -> dict[str, Any]:
                models = networks.of(replace(settings, device=networks.device))
                desk.estimated(background, models.depth.estimate(background))
                return {}

            with contextlib.suppress(QueueFull):
                self.site.begin(desk, DEPTH, {}, lambda files: work)
        return self.site.told(composite_in_words, desk)

    def take(self, name: str, desk: Desk, event: gr.EventData) -> str:
        return desk.take(name, self.site.files_of(desk, event)[0])

    def replay(self, desk: Desk, event: gr.EventData) -> None:
        values, missing = desk.replay(self.site.files_of(desk, event)[0])
        desk.carried = {name: value for name, value in desk.carried.items() if name not in CONTROLS}
        desk.note = "All settings of the image are back."
        if missing:
            desk.note += f" Its {' and '.join(missing)} must be given again: drop the same file."
        desk.back = [
            "" if (value := values.get(name)) is None else value for name in ("instruction", *CONTROLS)
        ]

    def propose(self, desk: Desk, event: gr.EventData, sentence: str, *controls: Any) -> None:
        """Places for the sentence, drawn on the scene."""
        given = page.values_of(ComposeSettings, CONTROLS, controls)
        own = replace(desk.settings(given, sentence or " "), candidates=PROPOSED)

        def work(settings: ComposeSettings, job: Job, networks: JobNetworks) -> dict[str, Any]:
            found = places_of(settings, networks, desk.depth_01)
            desk.records = [public(found.record(index)) for index in range(len(found.candidates))]
            desk.choose(0)
            return {}

        self.site.begin(desk, "place", own.input_files, lambda files: partial(work, replace(own, **files)))

    def compose(self, desk: Desk, event: gr.EventData, sentence: str, *controls: Any) -> None:
        """The composite, at the place that is shown, or where the sentence says."""
        placed = desk.box is not None or desk.target is not None
        given = page.values_of(ComposeSettings, CONTROLS, controls)
        settings = desk.settings(given, "" if placed else sentence)
        work = partial(compose_work, page=True, placement=desk.record)
        begun = self.site.begin
        begun(desk, "compose", settings.input_files, lambda files: partial(work, replace(settings, **files)))
        desk.note = ""
