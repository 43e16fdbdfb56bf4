"""Events of the page: each is a request whose answer says what there is to show, and what goes on.

Gradio's queue has no part in them. It sends all answers over one stream per page, and loses those of an event
that joins while that stream is being closed (Gradio 6.31). What goes on is asked for, see status.js: no text
stays because the answer that ends it was lost.
"""

import contextlib
import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from compose.serve.desk import Visit
from compose.serve.jobs import QueueFull
from compose.serve.uploads import without_paths
from ldm.files import read_text

Act = Callable[..., Any]
POLL, LATE = 200, 5000  # ms between two questions, until one counts as lost; chosen
STATUS = read_text(Path(__file__).with_name("status.js"))
EVENT: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
EVENT |= {"trigger_mode": "multiple"}  # one answer that is late holds up no other
GONE = "not ready yet, or this visit has ended: try again, or load the page again"
LOG = read_text(Path(__file__).with_name("acts.js"))


def status_of_work(name: str | None = None) -> gr.HTML:
    """Where a tab says what goes on, see status.js."""
    value: Any = {"work": [], "number": 0, "text": ""}
    script = f"const POLL = {POLL}, LATE = {LATE};\n{STATUS}"
    return gr.HTML(value, html_template="${value.text}", js_on_load=script, elem_id=name)


class Events:
    """Those of one tab.

    status: of `status_of_work`. looks: components, the visit first. surfaces: their names
    go_on(visit): begins what is due; HTML of what goes on, or came of it
    """

    def __init__(self, status: gr.HTML, looks: list[Any], surfaces: Sequence[str], go_on: Act) -> None:
        self.status, self.go_on, self.looks = status, go_on, [looks[0], gr.JSON(visible=False), *looks[1:]]
        self.script = LOG.replace("NAMES", json.dumps(surfaces))

    def on(self, event: Any, act: Act, show: Act, outputs: list[Any], *more: Any, **how: Any) -> Any:
        """At an event do act(visit, event, values of more), then show(visit, *looks) in the outputs.

        act: may return what the visitor should know; errors are said. how: for Gradio
        """
        count = len(self.looks) - 2

        def handler(visit: Any, log: Any, event: gr.EventData, request: gr.Request, *values: Any) -> Any:
            shown, told = [gr.skip() for _ in outputs], {"work": [], "number": 0, "text": ""}
            with visit.lock if visit else contextlib.nullcontext():
                try:
                    if visit is None:
                        raise ValueError(GONE)
                    visit.client = request.client.host if request.client else ""
                    told |= {"work": visit.work, "text": visit.text}
                    visit.catch_up(log or {})
                    told["info"] = act(visit, event, *values[count:])
                    told["work"] = visit.work  # before the rest, which is then no older
                    told["text"] = visit.text = self.go_on(visit)
                    if event.target is not self.status or event.work != told["work"]:
                        shown = show(visit, *values[:count])
                    told["number"] = visit.answers = visit.answers + 1
                except (ValueError, QueueFull) as error:
                    told["error"] = html.escape(without_paths(str(error), {}))
            return [*shown, told] if outputs else told

        how = {**EVENT, "js": self.script, **how}
        return event(handler, [*self.looks, *more], [*outputs, self.status], **how)


def nothing(visit: Visit, event: gr.EventData) -> None:
    """For `Events.on`: only show what there is."""
