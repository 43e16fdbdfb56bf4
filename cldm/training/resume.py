"""What a run was begun with: every checkpoint holds it in run.json, and a run goes on only with the same.

It is the resolved configuration, the sources of the mixture and a hash of each model folder.
"""

import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from pytorch_lightning.utilities import rank_zero_only

from cldm.training.settings import RunConfig
from datasets.sources.registry import DatasetsConfig
from ldm.files import hash_model, read_json, read_text, write_atomic
from ldm.settings.config import dump_yaml, load_config, yaml_layers
from ldm.settings.schema import flat, flat_settings, members, to_plain

log = logging.getLogger(__name__)

RECORD = "run.json"
# Keys, and sections with a dot, that decide neither examples nor loss: they take effect where a run goes on.
MAY_CHANGE = (
    "out", "name", "notice", "sampling.", "validation.", "trainer.", "data.batch", "data.workers",
    "data.stop_after", "train.lr", "train.final_lr", "train.hold", "train.warmup", "train.betas",
    "train.weight_decay", "train.shard_optimizer", "train.attention", "train.gradient_checkpointing",
)  # fmt: skip
FOLDERS = ("pretrained", "first_stage")  # may move, as their hashes are compared
STEP = ("data.batch", "trainer.accumulate", "trainer.devices", "trainer.nodes")  # their product must stay


class Change(NamedTuple):
    key: str
    was: Any
    now: Any


def run_record(config: RunConfig, items: Mapping[str, int]) -> dict[str, Any]:
    """What checkpoints hold. items: number of items of each source by its name."""
    hashes, mixture = dict[str, str](), dict[str, Any](items=dict(items))
    for name in FOLDERS:
        if (folder := getattr(config, name)) is not None:
            digest = hashlib.sha256(json.dumps(hash_model(folder), sort_keys=True).encode())
            hashes[name] = digest.hexdigest()
    if config.data.datasets is not None:
        settings = load_config(DatasetsConfig, config.data.datasets)
        for name in items:  # files may move, so paths are left out
            section, hints = getattr(settings, name), flat_settings(type(getattr(settings, name)))
            kept = {k: v for k, v in flat(to_plain(section)).items() if Path not in members(hints[k][1])}
            mixture[name] = {"weight": settings.weights[name], **kept}
    return {"config": to_plain(config), "mixture": mixture, "hashes": hashes}


def check_resumed(config: RunConfig, record: Mapping[str, Any], checkpoint: Path) -> list[Change]:
    """What has changed since a checkpoint was written and may; ValueError names all that may not."""
    defaults = flat(to_plain(RunConfig(out=config.out)))  # of keys that the version of then did not have
    file, written = checkpoint / RECORD, config.out / "config.yaml"
    if file.is_file():
        old = read_json(file)
    else:
        log.warning("%s is of an earlier version: data and model folders are not compared", checkpoint)
        values = yaml_layers(written)[-1].values if written.is_file() else record["config"]
        old, record = {"config": values}, {"config": record["config"]}

    def facts(given: Mapping[str, Any]) -> dict[str, Any]:
        found = defaults | flat(given["config"])
        found[" x ".join(STEP)] = prod(found[key] for key in STEP)
        return found | flat({part: given.get(part, {}) for part in ("mixture", "hashes")})

    was, now = facts(old), facts(record)
    changed = [Change(key, was.get(key), now.get(key)) for key in was | now if was.get(key) != now.get(key)]
    sections = tuple(key for key in MAY_CHANGE if key[-1] == ".")
    same = [key for key in FOLDERS if was.get(f"hashes.{key}") == now.get(f"hashes.{key}") is not None]
    allowed = [one for one in changed if one.key in (*MAY_CHANGE, *same) or one.key.startswith(sections)]
    if refused := [one for one in changed if one not in allowed]:
        listed = "; ".join(f"{one.key} {one.was!r}, now {one.now!r}" for one in refused)
        advice = f"use the same settings, or another out, with pretrained={config.out}/model"
        raise ValueError(f"{checkpoint} was begun with {listed}; {advice}")
    return allowed


@rank_zero_only
def write_settings(config: RunConfig, changes: Sequence[Change], step: int) -> None:
    """config.yaml of the run folder, and a row of changes.csv for each change that takes effect at a step."""
    path, written = config.out / "changes.csv", config.out / "config.yaml"
    table = io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    for key, was, now in changes:
        log.info("from step %d on %s is %s, was %s", step, key, now, was)
        rows.writerow((step, key, was, now))
    before = read_text(path) if path.is_file() else "step,key,was,now\n"
    if changes and not before.endswith(table.getvalue()):  # as when it was stopped before its next checkpoint
        write_atomic(path, (before + table.getvalue()).encode())
    if not written.is_file() or read_text(written) != dump_yaml(config):
        write_atomic(written, dump_yaml(config).encode())
