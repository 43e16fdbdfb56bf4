"""The nodes. They send PNGs to a server (`python -m compose.serve`) and wait for its job.

BIFROST_SERVER is its address, BIFROST_AUTH its USER:PASSWORD; as inputs, workflows would publish them.
Legend: b batch, h w pixels, c channels; IMAGE (b, h, w, c) and MASK (b, h, w) are floats in [0, 1].
"""

import asyncio
import base64
import json
import os
from io import BytesIO
from itertools import zip_longest

import aiohttp
import numpy as np
import torch
from comfy.model_management import throw_exception_if_processing_interrupted
from comfy_api.latest import ComfyAPI, io
from PIL import Image

POLL_S = 0.3  # seconds between two looks at a job
SEED = io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=True)
SAMPLES = io.Int.Input("samples", default=1, min=1, max=10)
OBJECT = [
    io.Image.Input("background"),
    io.Image.Input("object"),
    io.Mask.Input("object_mask", optional=True, tooltip="1 = object; invert the mask that LoadImage gives"),
    io.Image.Input("depth_map", optional=True, tooltip="of the background, bright = near"),
]


def png(name: str, image: torch.Tensor) -> bytes:
    """PNG of the one image or mask of a batch, depth with 16 bits; ValueError for several."""
    if len(image) != 1:
        raise ValueError(f"{name} holds {len(image)} images; one is needed (ImageFromBatch chooses it)")
    buffer, pixels = BytesIO(), image[0].cpu().numpy().clip(0, 1)
    if name == "depth_map":
        pixels = np.rint(pixels[..., 0] * 65535).astype(np.uint16)
    else:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


async def ask(session: aiohttp.ClientSession, method: str, path: str, **more) -> bytes:
    """The body of an answer; RuntimeError with the server's words."""
    async with session.request(method, path, **more) as answer:
        body = await answer.read()
        if answer.status >= 400:
            known = answer.content_type == "application/json"
            text = json.loads(body)["error"]["message"] if known else answer.reason
            raise RuntimeError(f"Bifrost: {text}")
        return body


async def send(end: str, **fields) -> tuple[dict, torch.Tensor]:
    """The report of a job and its images (b, h, w, c). Tensors are sent as files; None and "" stay out."""
    form = aiohttp.FormData()
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, torch.Tensor):
                form.add_field(name, png(name, one), filename=f"{name}.png", content_type="image/png")
            elif one not in (None, ""):
                form.add_field(name, str(one))
    server = os.environ.get("BIFROST_SERVER", "http://127.0.0.1:7860").rstrip("/")
    account = os.environ.get("BIFROST_AUTH", "").encode()
    headers = {"Authorization": f"Basic {base64.b64encode(account).decode()}"} if account else {}
    limits = aiohttp.ClientTimeout(None, sock_connect=10, sock_read=300)
    async with aiohttp.ClientSession(headers=headers, timeout=limits) as session:
        url, early = f"{server}/v1/images/{end}", {"Prefer": "respond-async"}
        job = json.loads(await ask(session, "POST", url, data=form, headers=early))
        url = f"{server}/v1/jobs/{job['id']}"
        try:
            while job["state"] in ("queued", "running"):
                throw_exception_if_processing_interrupted()
                if job["total"]:
                    await ComfyAPI().execution.set_progress(job["step"], job["total"])
                await asyncio.sleep(POLL_S)
                job = json.loads(await ask(session, "GET", url))
        except BaseException:
            await ask(session, "DELETE", url)
            raise
        if job["state"] != "done":
            raise RuntimeError(f"Bifrost: {job['error'] or 'the job was cancelled'}")
        names = [image["file"] for image in job["result"].get("images", ())]
        files = [BytesIO(await ask(session, "GET", f"{url}/{name}")) for name in names]
    pixels = [np.array(Image.open(file), np.float32) / 255 for file in files]
    return job["result"], torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0)


def schema(name: str, description: str, inputs: list, outputs: list) -> io.Schema:
    """A node. Its id is its name without blanks."""
    return io.Schema(
        node_id=f"Bifrost{name.title().replace(' ', '')}", display_name=f"{name} (Bifrost)",
        category="Bifrost", description=description, inputs=inputs, outputs=outputs)  # fmt: skip


class PlaceBySentence(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        sentence = io.String.Input("sentence", default="Place the dog behind the sofa")
        known = "JSON: thing -> its box, depth"
        anchors = io.String.Input("anchors", default="", optional=True, tooltip=known)
        outputs = [io.String.Output(display_name=name) for name in ("box", "depth", "report")]
        about = "The box and the depth where a sentence puts an object"
        return schema("Place by Sentence", about, [*OBJECT, sentence, anchors], outputs)

    @classmethod
    async def execute(cls, background, object, sentence, object_mask=None, depth_map=None, anchors=""):
        images = {"image": background, "reference_image": object, "reference_mask": object_mask}
        report, _ = await send("places", **images, depth_map=depth_map, instruction=sentence, anchors=anchors)
        best = report["places"][0]
        depth = [best["depth"]] if best["far"] is None else [best["far"], best["near"]]
        texts = [",".join(map(str, values)) for values in (best["box"], depth)]
        return io.NodeOutput(*texts, json.dumps(report))


class Compose(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.String.Input("box", default="", tooltip="x1,y1,x2,y2 as fractions: typed, or a place's"),
            io.String.Input("depth", default="", tooltip="d, or far,near; 1 = nearest; empty: the ground"),
            io.String.Input("sentence", default="", tooltip="where, instead of the box"),
            io.Combo.Input("mode", options=["place", "replace", "id-transfer", "inpaint"])]  # fmt: skip
        mask = io.Mask.Input("target_mask", optional=True, tooltip="1 = edit; nothing outside changes")
        outputs = [io.Image.Output(), io.Mask.Output(), io.String.Output(display_name="report")]
        about = "Put an object into an image by depth; the mask shows the pixels that changed"
        return schema("Compose", about, [*OBJECT, *inputs, SEED, SAMPLES, mask], outputs)

    @classmethod
    async def execute(cls, background, object, object_mask=None, depth_map=None, target_mask=None, **given):
        images = {"image": background, "reference_image": object, "reference_mask": object_mask}
        images |= {"depth_map": depth_map, "mask": target_mask}
        fields = {"instruction": given.pop("sentence"), "n": given.pop("samples"), **given}
        report, made = await send("edits", **images, **fields)
        changed = (torch.round(made * 255) != torch.round(background.cpu() * 255)).any(-1)
        return io.NodeOutput(made, changed.float(), json.dumps(report))


class PaintRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        inputs = [
            io.Image.Input("image"),
            io.Mask.Input("masks", tooltip="a batch, one mask for each region, 1 = paint"),
            io.String.Input("prompts", multiline=True, tooltip="a line a mask; empty ones are written"),
            io.String.Input("negatives", multiline=True, default="", tooltip="a line a mask, or nothing"),
        ]
        outputs = [io.Image.Output(), io.String.Output(display_name="report")]
        about = "Fill several masks in one pass, each with its own prompt"
        return schema("Paint Regions", about, [*inputs, SEED, SAMPLES], outputs)

    @classmethod
    async def execute(cls, image, masks, prompts, negatives, seed, samples):
        texts = [[line.strip() for line in text.splitlines()] for text in (prompts, negatives)]
        if (most := max(map(len, texts))) > len(masks):
            raise ValueError(f"{most} lines for {len(masks)} masks: each line belongs to one mask")
        pairs = zip_longest(*texts, [""] * len(masks), fillvalue="")
        regions = json.dumps([{"prompt": prompt, "negative": negative} for prompt, negative, _ in pairs])
        fields = {"mask": list(masks.split(1)), "regions": regions, "seed": seed, "n": samples}
        report, made = await send("edits", image=image, **fields)
        return io.NodeOutput(made, json.dumps(report))
