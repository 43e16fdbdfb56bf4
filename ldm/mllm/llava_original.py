"""Adapters merged into a transformers folder, one weight in memory at a time, every tensor accounted for.

A folder in the original LLaVA layout holds adapter_config.json, adapter_model.bin or .safetensors (LoRA
matrices of the language model) and non_lora_trainables.bin (the projector), under other names than those of
transformers: peft would load nothing of it, with no more than a warning.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints import folder_written_whole, read_weights
from ldm.files import read_json, visible_files, write_json
from ldm.mllm.training import read_adapter, today
from ldm.registry.models import existing_folder
from ldm.weight_files import Entry, WeightFile, open_weights, write_safetensors

log = logging.getLogger(__name__)

EXTRA = "non_lora_trainables"  # file of what LLaVA trains beside the LoRA matrices
PROJECTOR = "model.multi_modal_projector."
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5")
NOT_ORIGINAL = "not an adapter in the original LLaVA layout"
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
# Settings of peft that change what a pair of matrices means; none of LLaVA's adapters uses them.
PLAIN = {"use_dora": False, "fan_in_fan_out": False, "rank_pattern": {}, "alpha_pattern": {}, "bias": "none"}


@dataclass(frozen=True, eq=False)
class WeightChange:
    """What an adapter does to one weight: W + scale B A, or a value whose rows replace the first rows."""

    sources: tuple[str, ...]  # names in the adapter's files
    shape: tuple[int, ...]  # of the weight that it changes
    value: Tensor | None = None
    lora: tuple[Tensor, Tensor, float] | None = None  # A (r, in), B (out, r), scale

    def apply(self, weight: Tensor) -> Tensor:
        """The changed weight, in single precision."""
        if self.lora is not None:
            down, up, scale = self.lora
            return weight.float() + scale * (up.float() @ down.float())
        assert self.value is not None
        return torch.cat([self.value.float(), weight[len(self.value) :].float()])


def read_changes(folder: Path, original: bool = True) -> dict[str, WeightChange]:
    """The changes of an adapter folder by the name of the weight in transformers 5; ValueError for another.

    original: in LLaVA's layout; otherwise in peft's, where what was trained whole lies in the same file.
    """
    settings = read_json(folder / "adapter_config.json")
    if odd := {key: settings[key] for key, plain in PLAIN.items() if settings.get(key) not in (plain, None)}:
        raise ValueError(f"{folder}/adapter_config.json: {odd} is not supported; LLaVA's adapters have none")
    rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    if original:
        names = ("adapter_model.safetensors", "adapter_model.bin"), (f"{EXTRA}.bin", f"{EXTRA}.safetensors")
        files = [[folder / name for name in either if (folder / name).is_file()] for either in names]
        if lacking := [either[0] for either, there in zip(names, files, strict=True) if not there]:
            raise ValueError(f"{folder}: {lacking[0]} is missing; {NOT_ORIGINAL}")
        adapter, extra = (read_weights(there[0]) for there in files)
    else:
        stored = read_adapter(folder)
        adapter = {key: value for key, value in stored.items() if _LORA.fullmatch(key)}
        extra = {key: value for key, value in stored.items() if key not in adapter}
    halves: dict[str, dict[str, str]] = {}  # target -> A and B -> their names
    for key in adapter:
        if (found := _LORA.fullmatch(key)) is None:
            raise ValueError(f"{folder}: {key} is no LoRA matrix; {NOT_ORIGINAL}")
        halves.setdefault(found[1], {})[found[2]] = key
    if single := [target for target, half in halves.items() if len(half) != 2]:
        raise ValueError(f"{folder}: {len(single)} LoRA matrices without their partner, such as {single[0]}")
    changes = {}
    for target, half in halves.items():
        down, up = adapter[half["A"]], adapter[half["B"]]
        shape, sources = (up.shape[0], down.shape[1]), (half["A"], half["B"])
        changes[today(target + ".weight")] = WeightChange(sources, shape, lora=(down, up, scale))
    for key, value in extra.items():
        if (name := today(key)) in changes:
            raise ValueError(f"{folder}: {key} and {changes[name].sources} change the same weight")
        changes[name] = WeightChange((key,), tuple(value.shape), value)
    return changes


def merge_into(
    base: Path,
    adapter: Path,
    out: Path,
    original: bool = True,
    dtype: torch.dtype | None = None,
    also: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the base folder with the adapter merged; one weight is in memory at a time. Returns the report.

    base: a transformers folder with safetensors, any of its layouts. Its other files are copied.
    dtype: of the weights; None: as in the base. also: further JSON files
    ValueError if a tensor of the adapter fits no weight
    """
    changes = read_changes(adapter, original)
    shards = [open_weights(file) for file in visible_files(existing_folder(base), "*.safetensors")]
    if not shards:
        wanted = "--base is a transformers LLaVA folder such as llava-1.5-7b-hf"
        raise ValueError(f"{base}: no *.safetensors; {wanted}")
    # Name of a weight -> its file and its name there.
    places = {today(key): (shard, key) for shard in shards for key in shard.shapes}
    unused = [source for name, change in changes.items() if name not in places for source in change.sources]
    if unused:
        example = sorted(unused)[:3]
        raise ValueError(f"{adapter}: {len(unused)} tensors fit no weight of the base, such as {example}")
    for name, change in changes.items():
        shard, key = places[name]
        have, want = shard.shapes[key], change.shape
        shorter = change.value is not None and have[1:] == want[1:] and want[0] <= have[0]
        if have != want and not shorter:
            wrong = f"{change.sources[0]} is for a weight of shape {want}, {key} has {have}"
            raise ValueError(f"{adapter}: {wrong}")
    report: dict[str, Any] = {
        "adapter": adapter.name,
        "adapter_tensors": sum(len(change.sources) for change in changes.values()),
        "lora_pairs_merged": sum(change.value is None for change in changes.values()),
        "weights_replaced": sorted(name for name, change in changes.items() if change.value is not None),
        "weights_kept": len(places) - len(changes),
    }
    moved = []
    for name, change in changes.items():
        if name.startswith(PROJECTOR) and change.value is not None:
            shard, key = places[name]
            moved.append(float((change.value.float() - shard.read(key).float()).abs().max()))
    report["projector_change"] = max(moved, default=None)
    if report["projector_change"] == 0:  # it never had a gradient
        log.warning("the projector equals the base's bit for bit: this adapter was trained without images")

    def changed(shard: WeightFile, key: str) -> Tensor:
        weight, change = shard.read(key), changes.get(today(key))
        return weight if change is None else change.apply(weight)

    with folder_written_whole(out) as folder:
        for file in visible_files(base, "*"):
            if file.suffix not in WEIGHT_SUFFIXES:
                shutil.copy(file, folder / file.name)
        if dtype is not None:
            config = read_json(base / "config.json") | {"dtype": str(dtype).removeprefix("torch.")}
            write_json(folder / "config.json", {key: config[key] for key in config if key != "torch_dtype"})
        for shard in shards:
            entries = {}
            for key, old in shard.dtypes.items():
                kind = dtype if dtype and old.is_floating_point else old
                entries[key] = Entry(shard.shapes[key], kind, partial(changed, shard, key))
            write_safetensors(folder / shard.path.name, entries, progress=True)
        for name, value in {"conversion.json": report, **(also or {})}.items():
            write_json(folder / name, value)
    return report
