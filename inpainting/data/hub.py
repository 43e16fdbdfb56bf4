"""A model by its folder or its name on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

OTHER_FRAMEWORKS = ("*.msgpack", "*.h5", "*.onnx", "*.ot")
PICKLED = ("*.bin", "*.pt", "*.pth")  # not needed where the same weights lie there as safetensors


def model_folder(model_id: str, ignore: Sequence[str] = (*OTHER_FRAMEWORKS, *PICKLED)) -> Path:
    """The folder of a model: itself, or the hub's copy, which is fetched unless the hub is set offline.

    ignore: patterns of files that are not fetched
    """
    if Path(model_id).is_dir():
        return Path(model_id)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, ignore_patterns=list(ignore)))
    except Exception as error:  # whatever the hub library fails with
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"model {model_id}: no such folder, and the hub says: {lines[0][:200]}") from error
