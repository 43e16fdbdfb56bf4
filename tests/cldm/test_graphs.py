"""The compositor's steps by OpenVINO: the same image, graphs that are written once, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cldm import graphs
from cldm.config import SPEEDS, Sampling
from cldm.create import create_compositor
from cldm.graphs import Graphs, check_openvino, find_openvino
from cldm.model import Compositor, save_compositor
from cldm.pipeline import CompositorPipeline, Weights
from compose import ComposeSettings, load_models
from compose.serve.settings import COMPOSE_FIELDS
from ldm.denoise import Monitor
from ldm.reuse import predict_in_parts
from tests.cldm.small import SMALL, SMALL_CONFIG
from tests.cldm.test_pipeline import pair  # noqa: F401  (a fixture)

CPU, FP32 = torch.device("cpu"), torch.float32
SAMPLING = Sampling("ddim", steps=8, guidance=3.0)


def needs_openvino() -> Any:
    wanted = "pip install openvino==2026.4.1 (requirements-extras.txt)"
    return pytest.importorskip("openvino", reason=f"the library openvino is missing: {wanted}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "small"
    save_compositor(create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4), SMALL_CONFIG, place)
    return place


@pytest.fixture
def model() -> Compositor:
    return create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval()


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes for which graphs are written."""
    written, export = [], graphs.write_graph

    def counted(step: graphs.WholeStep, size: tuple[int, ...], path: Path) -> None:
        written.append(size)
        export(step, size, path)

    monkeypatch.setattr(graphs, "write_graph", counted)
    return written


def painted(model: Compositor, pair: Any, sampling: Sampling = SAMPLING, **more: Any) -> list[np.ndarray]:  # noqa: F811
    return CompositorPipeline(model).paint(pair, [5, 6], sampling, monitor=Monitor(progress=False), **more)


def by_openvino(model: Compositor, folder: Path) -> Compositor:
    model.graphs = Graphs(model, folder)
    return model


def test_without_the_library_the_command_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=r"^--engine openvino: the library openvino is missing; pip install "
                                         r"openvino==[\d.]+ \(requirements-extras.txt\)$"):  # fmt: skip
        find_openvino()
    settings = ComposeSettings(
        background="a.png", object="b.png", box=(0, 0, 1, 1), engine="openvino", device="cpu"
    )
    with pytest.raises(ValueError, match="pip install openvino"):
        load_models(settings)


@pytest.mark.parametrize(
    ("device", "dtype", "wrong"),
    [("cuda:0", FP32, "computes on the CPU, not on cuda:0: add --device cpu"),
     ("mps", torch.float16, "computes on the CPU, not on mps: add --device cpu"),
     ("cpu", torch.float16, "computes in fp32 or bf16: add --dtype fp32 or bf16")],
)  # fmt: skip
def test_what_it_cannot_do_is_refused_before_the_library_is_looked_for(
    device: str, dtype: torch.dtype, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ValueError, match=f"^--engine openvino {wrong}$"):
        check_openvino(torch.device(device), dtype)


def test_the_engine_is_that_of_the_server_s_owner_and_decides_which_networks_are_loaded() -> None:
    assert "engine" not in COMPOSE_FIELDS
    settings = ComposeSettings(background="a.png", object="b.png", box=(0, 0, 1, 1), device="cpu")
    models = load_models(settings)
    assert (models.engine, models.compositor.graphs) == ("torch", None)
    with pytest.raises(ValueError, match="unknown engine 'tensorrt'; allowed: torch, compile, openvino"):
        replace(settings, engine="tensorrt")


class TorchGraphs(Graphs):
    """Each part is computed by torch, as it would be cut out of the graph."""

    def load(self, names: list[str], given: list[str], size: tuple[int, ...]) -> Any:
        step = self.step

        def run(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            values = {name: torch.from_numpy(array) for name, array in arrays.items()}
            x, t, tokens = values.get("x"), values["t"], values["tokens"]
            if x is None:
                name = given[0]
                found = getattr(step, name)(values[name], t, tokens)
            else:
                residuals = [values[name] for name in given if name.startswith("residual")]
                deep = [(int(name[-1]), values[name]) for name in given if name.startswith("entering")]
                layers, known = (len(step.names("entering")) - deep[0][0], deep[0][1]) if deep else (0, None)
                prediction, entered = predict_in_parts(step.unet, x, t, tokens, residuals, known, layers)
                found = [prediction, *entered]
            return {name: value.numpy() for name, value in zip(names, found, strict=True)}

        return run


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("weights", [Weights(), Weights(0.7, 0.0)])
def test_graphs_take_and_give_what_the_networks_do(
    speed: str, weights: Weights, model: Compositor, pair: Any, folder: Path  # noqa: F811
) -> None:  # fmt: skip
    sampling = replace(SAMPLING, **SPEEDS[speed])
    expected = painted(model, pair, sampling, weights=weights)
    model.graphs = TorchGraphs(model, folder)
    found = painted(model, pair, sampling, weights=weights)
    assert max(int(np.abs(a.astype(int) - b).max()) for a, b in zip(found, expected, strict=True)) <= 1
    ran = {key[0].split(".")[0] for key in model.graphs.compiled}
    assert ran == ({"detail", "depth", "prediction"} if weights.depth else {"detail", "prediction"})
    whole = {key[1] == "entering.0" for key in model.graphs.compiled if key[0] == "prediction"}
    assert whole == ({True} if speed == "exact" else {True, False})


@pytest.mark.slow
@pytest.mark.parametrize("speed", SPEEDS)
def test_an_image_is_that_of_torch_to_a_level(
    speed: str, model: Compositor, pair: Any, folder: Path, exports: list[tuple[int, ...]]  # noqa: F811
) -> None:  # fmt: skip
    needs_openvino()
    sampling = replace(SAMPLING, **SPEEDS[speed])
    expected = painted(model, pair, sampling)
    found = painted(by_openvino(model, folder), pair, sampling)
    for one, other in zip(found, expected, strict=True):
        assert int(np.abs(one.astype(int) - other).max()) <= 1
    assert len(exports) <= 1  # one for every speed
    again = painted(by_openvino(model, folder), pair, sampling)  # of another process, say
    assert len(exports) <= 1
    assert all(map(np.array_equal, again, found))


@pytest.mark.slow
def test_bfloat16_gives_the_numbers_of_torch_up_to_its_rounding(folder: Path) -> None:
    needs_openvino()
    model = create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval().to(torch.bfloat16)
    if "BF16" not in find_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=draw)
    tokens = torch.randn(1, 5, SMALL.token_width, generator=draw)
    with torch.inference_mode():
        single, by_graph = (
            create_compositor(replace(SMALL, zero_conv_std=0.3), seed=4).eval(),
            Graphs(model, folder),
        )
        residuals = single.detail(torch.randn(1, 16, 8, 8, generator=draw), torch.tensor(500), tokens)
        found = by_graph.predict(x, torch.tensor(500), tokens, residuals, None)
        exact = predict_in_parts(single.unet, x, torch.tensor(500), tokens, residuals, None)
    for got, value in zip([found[0], *found[1]], [exact[0], *exact[1]], strict=True):
        assert float((got - value).abs().max()) < 0.03 * float(value.abs().max())


@pytest.mark.slow
def test_a_graph_is_written_again_for_other_weights_and_shapes_only(
    model: Compositor, folder: Path, tmp_path: Path, exports: list[tuple[int, ...]]
) -> None:
    needs_openvino()
    own = tmp_path / "own"
    save_compositor(model, SMALL_CONFIG, own)
    embedding, tokens = torch.ones(1, 16, 8, 8), torch.ones(1, 5, SMALL.token_width)

    def residuals(**more: torch.Tensor) -> torch.Tensor:
        given = {"embedding": embedding, "t": torch.tensor(7), "tokens": tokens, **more}
        return Graphs(model, own).detail(*given.values())[-1]

    with torch.inference_mode():
        first = residuals()
        torch.testing.assert_close(residuals(), first)
        assert len(exports) == 1
        residuals(embedding=torch.ones(1, 16, 4, 8))
        assert len(exports) == 2
    with torch.no_grad():
        model.detail.net.controlnet_mid_block.weight.mul_(2)
        model.detail.net.controlnet_mid_block.bias.mul_(2)
    kept = {path: path.read_bytes() for path in (tmp_path / "own.openvino").rglob("*") if path.is_file()}
    save_compositor(model, SMALL_CONFIG, own)
    with torch.inference_mode():
        torch.testing.assert_close(residuals(), 2 * first, rtol=1e-3, atol=1e-4)
    assert len(exports) == 3
    assert {path: path.read_bytes() for path in kept} == kept
    about = json.loads(next((tmp_path / "own.openvino").glob("*/about.json")).read_text())
    assert {"weights", "size", "precision", "versions"} <= about.keys()
    assert "openvino" in about["versions"]


@pytest.mark.slow
def test_an_export_that_was_killed_is_not_taken_for_whole(
    model: Compositor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_openvino()
    own = tmp_path / "own"
    save_compositor(model, SMALL_CONFIG, own)

    class Killed(BaseException):
        """Ends the process, which cleans up nothing."""

    def killed(step: graphs.WholeStep, size: tuple[int, ...], path: Path) -> None:
        path.with_suffix(".bin").write_bytes(b"half")
        monkeypatch.setattr("shutil.rmtree", lambda *given, **options: None)
        raise Killed

    embedding, tokens = torch.ones(1, 16, 8, 8), torch.ones(1, 5, SMALL.token_width)
    monkeypatch.setattr(graphs, "write_graph", killed)
    with torch.inference_mode(), pytest.raises(Killed):
        Graphs(model, own).detail(embedding, torch.tensor(7), tokens)
    monkeypatch.undo()
    left = [path.name for path in (tmp_path / "own.openvino").iterdir()]
    assert any(name.endswith(".partial") for name in left)
    assert all(name.startswith(".") for name in left)
    with torch.inference_mode():
        found = Graphs(model, own).detail(embedding, torch.tensor(7), tokens)
        expected = model.detail(embedding, torch.tensor(7), tokens)
    for got, value in zip(found, expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "own.openvino").iterdir())) == 1
