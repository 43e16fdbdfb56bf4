"""Checkpoints of training: what lies beside the weights is passed over, and nothing of it is run."""

import os
import pickle
import random
import runpy
import shutil
import subprocess
import sys
import types
from argparse import Namespace
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path, PureWindowsPath
from uuid import UUID

import numpy as np
import pytest
import pytorch_lightning
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.parsing import AttributeDict

from ldm.weight_files import open_weights

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


class Bomb:
    """Pickles as a call, by default of one that makes a file."""

    def __init__(self, path: object, call: Callable = open, *more: object) -> None:
        self.path, self.call, self.more = path, call, more

    def __reduce__(self):
        return (self.call, (str(self.path), *(self.more or "w")))


class Table(dict):
    """A dictionary of training code, which would make a file when it is unpickled."""

    def __setitem__(self, key, value):
        Path(value).touch()

    __setstate__ = __init__ = None


class Rows(list):
    """A list of training code."""


def touch(path: str, mode: str) -> None:
    """A function of a library."""
    Path(path).touch()


@dataclass
class TrainConfig:
    """A structured configuration of training code."""

    lr: float = 1e-5
    names: list[str] = field(default_factory=lambda: ["a"])
    sizes: dict[str, int] = field(default_factory=lambda: {"h": 64})
    out: Path = Path("runs/a")
    limit: int | None = None

    class Mode(Enum):
        """A class inside a class."""

        FAST = 1


class Trained(pytorch_lightning.LightningModule):
    def __init__(self, config: DictConfig, args: Namespace, **more: object) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


LEFT = {  # what lies beside the weights of training checkpoints
    "DictConfig": OmegaConf.create({"lr": 1e-5, "model": {"sizes": [1, 2]}, "same": "${lr}", "none": None}),
    "ListConfig": OmegaConf.create([1, {"a": [2]}]),
    "structured": OmegaConf.structured(TrainConfig),
    "AttributeDict": AttributeDict(lr=1e-5, inner=AttributeDict(a=[1])),
    "Namespace": Namespace(lr=1e-5, out=Path("runs/a"), config=OmegaConf.create({"a": 1})),
    "Path": [Path("a/b"), PureWindowsPath("a/b")],
    "numpy": [np.float64(0.5), np.int64(3), np.str_("a"), np.arange(3), np.dtype("f4")],
    "random states": [random.getstate(), np.random.default_rng(0)],
    "defaultdict": {"a": defaultdict(dict, {1: {2: 3}}), "b": defaultdict(list)},
    "deque": deque([1.5, 2.5], maxlen=3),
    "enum": [TrainConfig.Mode.FAST, TrainConfig.Mode],
    "types": [int | str, list[int], TrainConfig, int, dict],
    "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0),
    "function": [torch.nn.functional.relu, partial(torch.nn.functional.gelu, approximate="tanh")],
    "data": [datetime.now(), timedelta(1), Decimal(1), UUID(int=1), range(3), slice(1), frozenset({1}), 1j],
}


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "x": Bomb(tmp_path / "hit")}
    torch.save(content, tmp_path / "w.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"w.ckpt: refused"):
        open_weights(tmp_path / "w.ckpt")
    assert not (tmp_path / "hit").exists()


def test_a_plain_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "hit"), protocol=2))
    with pytest.raises(ValueError, match="refused|not a readable checkpoint"):
        open_weights(tmp_path / "w.pt")
    assert not (tmp_path / "hit").exists()


def test_training_objects_are_ignored_without_their_library(tmp_path: Path, monkeypatch) -> None:
    """Lightning checkpoints hold classes of its callbacks and numpy scalars beside the weights."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    kind = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = kind
    one = kind()
    one.best = 3
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        content = {"state_dict": WEIGHTS, "callbacks": {kind: {"best": np.float64(0.5)}, "object": one}}
        torch.save(content, tmp_path / "w.ckpt")
    file = open_weights(tmp_path / "w.ckpt")
    assert file.others == ("callbacks",)
    assert torch.equal(file.read("a.weight"), WEIGHTS["a.weight"])


def saved(path: Path, content: object, legacy: bool = False) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("left", LEFT)
def test_what_training_left_is_passed_over(left: str, legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "hyper_parameters": {"x": LEFT[left], "y": [LEFT[left]]}, "step": 1}
    file = open_weights(saved(tmp_path / "w.ckpt", content, legacy))
    assert file.others == ("hyper_parameters", "step")
    assert file.shapes == {key: tuple(value.shape) for key, value in WEIGHTS.items()}
    assert all(torch.equal(file.read(key), value) for key, value in WEIGHTS.items())


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_lightning_itself(tmp_path: Path) -> None:
    config, args = OmegaConf.structured(TrainConfig), Namespace(out=tmp_path, rate=np.float32(1))
    model = Trained(config, args, more=OmegaConf.create([1]))
    keep = ModelCheckpoint(tmp_path, "best", monitor="loss")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pytorch_lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[keep, EarlyStopping("loss")], **quiet
    )
    trainer.fit(model, torch.utils.data.DataLoader(torch.ones(2, 2)))
    file = open_weights(tmp_path / "best.ckpt")
    assert {"callbacks", "hyper_parameters", "optimizer_states", "loops"} < set(file.others)
    assert file.shapes == {"layer.weight": (1, 2), "layer.bias": (1,)}
    assert torch.equal(file.read("layer.weight"), model.layer.weight)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_of_libraries_is_passed_over_and_never_run(legacy: bool, tmp_path: Path) -> None:
    """A function, a method of a dictionary and a type that is called, of modules that could be imported."""
    hit, table = tmp_path / "hit", Table.__new__(Table)
    dict.__setitem__(table, "a", str(hit))
    left = [Bomb(hit, touch), table, Bomb(hit, np.memmap, "uint8", "w+", 0, (1,))]
    file = open_weights(saved(tmp_path / "w.ckpt", {"state_dict": WEIGHTS, "x": left}, legacy))
    assert file.others == ("x",)
    assert torch.equal(file.read("a.bias"), WEIGHTS["a.bias"])
    assert not hit.exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (os.system, "posix.system|nt.system"),
        (eval, "builtins.eval"),
        (exec, "builtins.exec"),
        (__import__, "builtins.__import__"),
        (subprocess.Popen, "subprocess.Popen"),
        (runpy.run_path, "runpy.run_path"),
        (shutil.rmtree, "shutil.rmtree"),
    ],
)
def test_code_of_python_itself_is_refused_by_name(
    call: Callable, name: str, legacy: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path / "w.ckpt", {"state_dict": WEIGHTS, "x": Bomb("none", call)}, legacy)
    with pytest.raises(
        ValueError, match=rf"w.ckpt: refused: loading it would run code by the names ({name});"
    ):
        open_weights(path)


def test_what_cannot_be_read_safely_is_refused_in_one_line(tmp_path: Path) -> None:
    rows = saved(tmp_path / "rows.pt", {"state_dict": WEIGHTS, "x": Rows([1])})
    newer = tmp_path / "newer.pt"
    torch.save(WEIGHTS, newer, pickle_protocol=4)
    script = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(1, 1), torch.ones(1, 1)), script)
    model = saved(tmp_path / "model.pt", torch.nn.Linear(1, 1))
    cases = {rows: "Rows.*save it as .safetensors", newer: "Unsupported operand 149", script: "torchscript",
             model: "holds a Linear, expected a dictionary of tensors"}  # fmt: skip
    for path, message in cases.items():
        with pytest.raises(ValueError, match=rf"{path.name}: .*{message}") as caught:
            open_weights(path)
        assert "\n" not in str(caught.value)
