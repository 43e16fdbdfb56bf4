"""A measurement of `benchmarks.training_data`, in the folder of this or an earlier revision.

Arguments: a settings file of datasets, the number of examples of each source.
"""

import json
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import torch


def measure_examples(settings: str, count: str) -> None:
    """Write a line of JSON: CPU milliseconds and megabytes of an example that is accepted, by source."""
    old = find_spec("datasets.registry") is not None
    names = "datasets.sources.registry datasets.examples ldm.settings.config"
    names = "datasets.registry datasets.base ldm.config" if old else names
    registry, examples, config = map(import_module, names.split())
    options = import_module("datasets.inputs").PairOptions()
    collate: Any = examples.collate if old else examples.collate_pairs
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    loaded, rows = config.load_config(registry.DatasetsConfig, Path(settings)), {}
    for name in loaded.weights:
        # In a mixture another source takes the place of one that rejects so many items.
        limit = {} if old else {"stop_after": examples.ITEMS}
        dataset = examples.PairDataset(registry.open_source(loaded, name), options, 0, **limit)
        batch, failed = {}, 0
        for k in range(-1, int(count)):
            if k == 0:  # after a warm-up
                started, failed = time.process_time(), 0
            try:
                batch = collate([dataset[k if k >= 0 else int(count)]])
            except ValueError:  # the earlier revision stops after 16 rejections; what they take counts
                failed += 1
        ms = 1000 * (time.process_time() - started) / max(int(count) - failed, 1)
        sizes = (value.nbytes for value in batch.values() if isinstance(value, torch.Tensor))
        rows[name] = {"cpu_ms": round(ms, 2), "mb": round(sum(sizes) / 1e6, 2), "failed": failed}
    sys.stdout.write(json.dumps(rows) + "\n")


if __name__ == "__main__":
    measure_examples(*sys.argv[1:])
