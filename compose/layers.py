"""A composite as layers for image editors: one OpenRaster file, a zip that GIMP and Krita open.

https://www.openraster.org/baseline/file-layout-spec.html
"""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from compose.pipeline import Result
from ldm.decode import LoadedImage
from ldm.images import encode_image, encode_png, fitted, resize
from ldm.result import beside, write_result

THUMBNAIL = 256  # pixels of the longer side, at most; of the specification


def layers_of(result: Result, index: int) -> dict[str, LoadedImage]:
    """What sample `index` consists of, the lowest first; all in size and colours of the background.

    background: as it was read. around: what changed beside the object, such as its shadow. object: its
    visible pixels. front: what is certainly nearer than the object. Pixels of all but the background are
    opaque, or empty and black. Laid over each other they are the composite, byte for byte where the
    background is opaque.
    """
    image, before, geometry = result.images[index], result.background, result.geometry
    layers, embed = geometry.native_layers, geometry.window.embed
    changed = (image.own_u8 != before.own_u8).any(axis=2)
    if image.alpha_u8 is not None and before.alpha_u8 is not None:
        changed |= image.alpha_u8 != before.alpha_u8
    visible = embed(layers.visible)
    masks = {
        "around": changed & ~visible,
        "object": visible,
        "front": embed(layers.keep) & ~changed & ~visible,
    }
    found = {"background": before}
    for name, mask in masks.items():
        pixels_u8 = np.where(mask[..., None], image.own_u8, np.uint8(0))
        found[name] = replace(before, rgb_u8=pixels_u8, stored_u8=None, alpha_u8=mask * np.uint8(255))
    return found


def save_layers(result: Result, index: int, out: Path, overwrite: bool) -> Path:
    """Write NAME_layers.ora beside the composite `out`: layers as PNG, and layers.json with place and depth.

    overwrite: as in `ldm.result.write_result`
    """
    layers, report, (h, w) = layers_of(result, index), result.report, result.background.size
    names = ("box", "depth", "mode", "visible_fraction")
    about = {"size": [w, h], "seed": result.seeds[index], **{name: report[name] for name in names}}
    about["layers"] = [{"name": name, "file": f"data/{name}.png"} for name in layers]
    stack = "".join(f'<layer name="{name}" src="data/{name}.png"/>' for name in reversed(layers))
    stack = f'<?xml version="1.0"?><image version="0.0.3" w="{w}" h="{h}"><stack>{stack}</stack></image>'
    image = result.images[index]
    small_u8 = resize(image.rgb_u8, fitted(image.size, THUMBNAIL))
    files = {"mimetype": b"image/openraster", "stack.xml": stack.encode()}
    files |= {f"data/{name}.png": encode_image(layer, ".png") for name, layer in layers.items()}
    files |= {
        "mergedimage.png": encode_image(image, ".png"),
        "Thumbnails/thumbnail.png": encode_png(small_u8),
    }
    files["layers.json"] = (json.dumps(about, indent=2) + "\n").encode()
    path, buffer = beside(out, "_layers.ora"), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNGs are compressed already
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # without the time: equal input gives equal bytes
    write_result({path: buffer.getvalue()}, overwrite)
    return path
