"""What requests bring: images as bytes, as paths below an allowed folder, or by public addresses.

A file is stored as it was sent, under the hash of its contents, in the folder of its job. Its kind is that of
its contents, never of its name. Errors call it by the field of the request.
"""

import hashlib
import io
import ipaddress
import os
import re
import socket
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import numpy as np
from PIL import Image

from compose.serve.jobs import Job
from compose.serve.settings import PATHS, ServeSettings
from ldm.decode import DECODER_ERRORS, RASTER_FORMATS, opened, rgb_and_alpha
from ldm.files import ROOT
from ldm.images import encode_png
from ldm.temporary import FOLDER, IN_MEMORY

MOST_REDIRECTS = 5
MOST_TEXT = 4096  # characters of a path or an address: PATH_MAX of Linux
SECONDS, LONGEST = 20.0, 60.0  # in which another server must answer, and have answered; chosen
UNICAST = ipaddress.ip_network("2000::/3")  # all that is assigned: IANA, "IPv6 Address Space"
ABSOLUTE = re.compile(r"(?<![\w:/.>])/(?:[^\s/\"',;:()]+/)*([^\s/\"',;:()]+)")


def check_image(field: str, source: Path | io.BytesIO, settings: ServeSettings) -> str:
    """The kind of an image, by its header; ValueError for other contents and too many pixels."""
    try:
        with Image.open(source, formats=RASTER_FORMATS) as image:
            kind, (w, h) = str(image.format).lower(), image.size
    except Image.DecompressionBombError:
        raise ValueError(f"{field}: too many pixels, at most {settings.max_megapixels} million") from None
    except DECODER_ERRORS:
        raise ValueError(f"{field} is not an image; readable are {', '.join(RASTER_FORMATS)}") from None
    if w * h > settings.max_megapixels * 1_000_000:
        allowed = f"at most {settings.max_megapixels} million are taken"
        raise ValueError(f"{field} has {w} x {h} = {w * h / 1e6:.1f} million pixels; {allowed}")
    return kind


def store(job: Job, field: str, data: bytes, settings: ServeSettings) -> Path:
    """The file of an uploaded image, which `check_image` takes; errors call it by the field."""
    kind = check_image(field, io.BytesIO(data), settings)
    path = job.inputs / f"{hashlib.sha256(data).hexdigest()}.{kind}"
    path.write_bytes(data)
    job.names[str(path)] = field
    return path


def named_bytes(field: str, name: str, settings: ServeSettings) -> bytes:
    """The contents of an image that a request names by a path or an address; ValueError says why not."""
    most = settings.max_mb * 1_000_000
    if len(name) > MOST_TEXT or name[:5].lower() == "data:":  # contents would come back in the error
        raise ValueError(f"{field}: text is a path or an address; contents are sent as a file, not as base64")
    if re.match(r"https?://", name, re.IGNORECASE):
        if not settings.allow_urls:
            raise ValueError(f"{field}: addresses are not fetched here (--allow-urls allows it)")
        return fetch(field, name, most)
    if not settings.allow:
        raise ValueError(
            f"{field} must be a file; paths on the server are not read (--allow allows a folder)"
        )
    for folder in (folder.resolve() for folder in settings.allow):
        try:
            path = Path(os.path.realpath(folder / name, strict=True))
            if not path.is_relative_to(folder):
                continue
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK
            with open(os.open(path, flags), "rb") as file:
                if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    data = file.read(most + 1)
                    break
        except (OSError, ValueError):
            continue
    else:
        raise ValueError(f"{field}: {name} is no file below the allowed folder")
    if len(data) > most:
        raise ValueError(f"{field} has more than {settings.max_mb} MB (--max-mb)")
    return data


def new_file(field: str, name: str, settings: ServeSettings) -> Path:
    """Where a request has a PNG written: below an allowed folder; ValueError where something is there."""
    for folder in (folder.resolve() for folder in settings.allow):
        path = Path(os.path.realpath((folder / name).parent)) / Path(name).name
        if path.suffix.lower() == ".png" and path.parent.is_dir() and path.is_relative_to(folder):
            if os.path.lexists(path):
                raise ValueError(f"{field}: {name} is there already; nothing is replaced")
            return path
    raise ValueError(f"{field}: {name} is no PNG in a folder that may be written (--allow allows one)")


def public_address(field: str, host: str, port: int) -> str:
    """The first address of a host; ValueError where any of its addresses is not a public one."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(f"{field}: {host} is not known") from None
    for *_, place in found:
        address: Any = ipaddress.ip_address(str(place[0]).partition("%")[0])
        address = getattr(address, "ipv4_mapped", None) or address
        # 6to4 and Teredo carry IPv4 addresses; NAT64, ::/96 and their like are outside unicast ones.
        inside = address.version == 6 and (address.sixtofour or address.teredo or address not in UNICAST)
        if inside or not address.is_global or address.is_multicast:
            raise ValueError(f"{field}: {host} is not a public address")
    return str(found[0][4][0])


def fetch(field: str, url: str, most: int) -> bytes:
    """The body behind a public address. The address that was checked is the one connected to, also for each
    redirect. ValueError for everything that fails, and for more than `most` bytes.
    """
    end = time.monotonic() + LONGEST
    with httpx.Client(trust_env=False, timeout=SECONDS, follow_redirects=False) as client:
        for _ in range(MOST_REDIRECTS + 1):
            try:
                parts = urlsplit(url)
                host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
            except ValueError:
                raise ValueError(f"{field}: not an address") from None
            if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
                raise ValueError(f"{field}: only plain http(s) addresses are fetched")
            at = httpx.URL(url).copy_with(host=public_address(field, host, port), port=port)
            named = {"headers": {"Host": parts.netloc, "Accept-Encoding": "identity"}}
            named |= {"extensions": {"sni_hostname": host}}
            try:
                with client.stream("GET", at, **named) as answer:  # type: ignore[arg-type]
                    if answer.is_redirect:
                        url = urljoin(url, answer.headers.get("location", ""))
                        continue
                    if answer.status_code != 200:
                        raise ValueError(f"{field}: {host} answered {answer.status_code}")
                    data = bytearray()
                    for block in answer.iter_bytes():
                        data += block
                        if len(data) > most:
                            raise ValueError(f"{field} has more than {most // 1_000_000} MB (--max-mb)")
                        if time.monotonic() > end:
                            raise ValueError(f"{field}: {host} took more than {LONGEST:.0f} s")
                    return bytes(data)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ValueError(f"{field}: {host} could not be read ({type(error).__name__})") from None
    raise ValueError(f"{field}: more than {MOST_REDIRECTS} redirects")


def white_is_edit(job: Job, path: Path, field: str) -> tuple[Path, str]:
    """A mask as this repository keeps it (white = edit), and how the file was read.

    A file with transparency says where to edit by alpha 0, as the API of OpenAI has it; another one by white.
    """
    with opened(path) as image:
        alpha_u8 = rgb_and_alpha(image, path)[1]
    if alpha_u8 is None or alpha_u8.min() == 255:
        return path, "white = edit"
    edit = alpha_u8 == 0
    if not edit.any():
        raise ValueError(f"{field}: no pixel is fully transparent (alpha 0), so nothing would be edited")
    mask = written_mask(job, edit)
    job.names[str(mask)] = field
    return mask, "alpha 0 = edit"


def written_mask(job: Job, mask: np.ndarray) -> Path:
    """The file of a mask (h, w) bool."""
    data = encode_png(mask.astype(np.uint8) * 255)
    path = job.inputs / f"{hashlib.sha256(data).hexdigest()}.png"
    path.write_bytes(data)
    return path


def without_paths(text: str, names: Mapping[str, str]) -> str:
    """A message for clients: uploads by the names of their fields, other files without their folders."""
    for path, name in names.items():
        text = text.replace(path, name).replace(f"{name} {name}", name)
    return ABSOLUTE.sub(r"\1", text.replace(f"{ROOT}/", ""))


def public(value: Any, key: str = "") -> Any:
    """A recipe or report for clients: an upload as `memory:NAME`, a folder of networks below this repository
    by its place in it, another one by its last part.
    """
    if isinstance(value, Mapping):
        return {name: public(item, name) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(item, key) for item in value]
    if not isinstance(value, Path) and not (isinstance(value, str) and key in PATHS):
        return value
    path = Path(value)
    if path.parent.name.startswith(FOLDER):
        return f"{IN_MEMORY}{path.name}"
    if path.is_absolute():
        return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    return value if isinstance(value, str) else path.as_posix()
