"""Outputs of the published compositor at reduced width, for parity tests.

Inputs follow from one seed, weights from the names of their keys. The repository holds the names and at most
4096 values of each output (tests/fixtures/golden_compositor.npz); the whole outputs are used when
BIFROST_TEST_DATA names the data folder.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FIXTURE = Path(__file__).parents[1] / "fixtures" / "golden_compositor.npz"
STORED = 4096  # values of an output
SIZE = 128  # pixels of the crop


@dataclass(frozen=True)
class Golden:
    """Inputs, expected outputs (a part of each, by the distance of the values kept), keys and shapes."""

    inputs: dict[str, Tensor]
    outputs: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    whole: bool

    def check(self, name: str, actual: Tensor, tolerance: float = 1e-4) -> None:
        """Fail unless every stored value of an output is reached; the whole one is given."""
        expected = torch.from_numpy(self.outputs[name].ravel())
        step = 1 if self.whole else stride(actual.numel())
        torch.testing.assert_close(actual.flatten()[::step], expected, atol=tolerance, rtol=0)

    def small(self, name: str) -> Tensor:
        """An output that is stored whole, as it is read by the next stage."""
        return torch.from_numpy(self.outputs[name])


def stride(count: int) -> int:
    """Distance of the stored values of an array; odd, so that all of its rows and columns are met."""
    return 1 if count <= STORED else -(-count // STORED) | 1


def golden_inputs() -> dict[str, Tensor]:
    """Latents, hints (three colours and the mask -1, 0, 1), depth, reference, image and first noise."""
    rng = np.random.default_rng(1234)
    values = {"x": rng.standard_normal((2, 4, 16, 16)), "noise": rng.standard_normal((2, 4, 16, 16))}
    hint = rng.random((2, 4, SIZE, SIZE)) * 2 - 1
    hint[:, 3] = rng.integers(-1, 2, (2, SIZE, SIZE))
    values |= {"hint": hint, "depth": rng.random((2, 3, SIZE, SIZE)), "ref": rng.random((2, 3, 224, 224))}
    values |= {"img": rng.random((1, 3, 64, 64)) * 2 - 1, "xT": rng.standard_normal((2, 4, 16, 16))}
    return {name: torch.from_numpy(value.astype(np.float32)) for name, value in values.items()} | {
        "t": torch.tensor([17, 803])
    }


def load_golden() -> Golden:
    """The whole outputs where the data folder is named, otherwise the stored part."""
    named, inputs = os.environ.get("BIFROST_TEST_DATA"), golden_inputs()
    if not named:
        with np.load(FIXTURE) as stored:
            outputs = dict(stored)
        manifest = json.loads(bytes(outputs.pop("manifest")))
        return Golden(inputs, outputs, {key: tuple(shape) for key, shape in manifest.items()}, False)
    folder = Path(named) / "golden"
    with np.load(folder / "compositor_tiny.npz") as arrays:
        outputs = {name.removeprefix("out_"): arrays[name] for name in arrays.files if name[:4] == "out_"}
        for name, value in inputs.items():
            assert np.array_equal(arrays[f"in_{name}"], value.numpy()), name
    manifest = json.loads((folder / "tiny_manifest.json").read_text())
    return Golden(inputs, outputs, {key: tuple(shape) for key, (shape, _) in manifest.items()}, True)


def write_fixture(fixture: Path = FIXTURE) -> None:
    """Make the stored part from the whole outputs in the data folder."""
    golden = load_golden()
    kept = {
        name: value if value.size <= STORED else value.ravel()[:: stride(value.size)]
        for name, value in golden.outputs.items()
        if not name.startswith(("buf_", "log_"))
    }
    keys = np.frombuffer(json.dumps(golden.shapes).encode(), np.uint8)
    np.savez_compressed(fixture, manifest=keys, **kept)
