"""How families write places: there and back, inside the form that constrained decoding allows."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from datasets.relations import Place
from ldm.mllm.constrain import Grammar
from llava_bifrost.language.answer import AnswerError, format_answer, parse_answer
from llava_bifrost.language.codec import Codec, Frame, frame_of, number_text, span, to_square
from llava_bifrost.language.instruction import CODECS, FORMATS
from llava_bifrost.locator import LocatorConfig
from tests.ldm.small_mllm import build_small, word_level

fraction = st.floats(0, 1)


@st.composite
def locations(draw: st.DrawFn) -> Place:
    x, y = sorted((draw(fraction), draw(fraction))), sorted((draw(fraction), draw(fraction)))
    assume(x[1] - x[0] > 0.004 and y[1] - y[0] > 0.004)
    far, d, near = sorted(draw(fraction) for _ in range(3))
    return Place.of((x[0], y[0], x[1], y[1]), d, far, near)


frames = st.builds(
    Frame,
    st.tuples(st.integers(40, 900), st.integers(40, 900)),
    st.tuples(st.integers(10, 40), st.integers(10, 40)).map(lambda hw: (28 * hw[0], 28 * hw[1])),
)


@given(where=locations(), frame=frames, name=st.sampled_from(CODECS), fmt=st.sampled_from(FORMATS))
def test_there_and_back(where: Place, frame: Frame, name: str, fmt: str):
    codec = Codec(name, fmt)
    text = codec.encode(where, frame)
    again = codec.decode(text, frame)
    steps = {"bifrost": 0.001, "thousand": 0.001, "pixels": 1 / min(frame.input_hw or (1,))}
    step = steps.get(name, 0.001 * max(frame.size_hw) / min(frame.size_hw))
    assert np.allclose(again.box01_xyxy, where.box01_xyxy, atol=1.01 * step)
    assert again.d == pytest.approx(where.d, abs=0.00051)
    assert again.extent is None or fmt == "maxmedmin"
    form = codec.form(frame)
    inner = form.low == (0, 0) or name != "square"
    if inner:
        assert re.fullmatch(form.pattern(), text)
        assert re.fullmatch(form.pattern(text), text)
        assert form.first_corner(text) is not None


def test_texts():
    where = Place.of((0.32, 0.19, 0.56, 0.87), 0.89)
    frame = Frame((300, 500), (308, 504))
    assert Codec().encode(where, frame) == "[0.320, 0.190, 0.560, 0.870], 0.890." == format_answer(where)
    assert Codec("pixels").encode(where, frame) == '{"bbox_2d": [161, 59, 282, 268], "depth": 0.890}'
    assert Codec("thousand").encode(where, frame) == '{"bbox_2d": [320, 190, 560, 870], "depth": 0.890}'
    square = Codec("square").encode(where, frame)
    assert parse_answer(square).box01_xyxy == pytest.approx((0.32, 0.2 + 0.6 * 0.19, 0.56, 0.2 + 0.6 * 0.87))
    wide = Codec("thousand", "maxmedmin").encode(Place.of((0.1, 0.1, 0.2, 0.2), 0.5, 0.4, 0.6), frame)
    assert wide.endswith('"depth": [0.600, 0.500, 0.400]}')


@pytest.mark.parametrize("name", ["pixels", "thousand"])
def test_broken_json_is_an_answer_error(name: str):
    for text in ("", "{}", '{"bbox_2d": [1, 2, 3], "depth": 0.5}', '{"bbox_2d": [1, 2, 1, 9], "depth": 0.5}'):
        with pytest.raises(AnswerError):
            Codec(name).decode(text, Frame((10, 10), (28, 28)))


def test_a_box_in_the_padding_is_refused():
    frame = Frame((100, 400))
    with pytest.raises(AnswerError, match="padding"):
        Codec("square").decode("[0.1, 0.1, 0.2, 0.3], 0.5.", frame)
    form = Codec("square").form(frame)
    assert (form.low, form.high) == ((0, 375), (1000, 625))


@given(where=locations(), frame=frames)
def test_square_is_inverted(where: Place, frame: Frame):
    box = to_square(where.box01_xyxy, frame)
    assert all(0 <= value <= 1 for value in box)
    text = f"[{', '.join(f'{value:.9f}' for value in box)}], 0.5."
    assert Codec("square").decode(text, frame).box01_xyxy == pytest.approx(where.box01_xyxy, abs=1e-6)


@given(
    decimals=st.sampled_from((0, 2, 3)), ends=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    value=st.integers(0, 1999),
)  # fmt: skip
def test_spans_hold_exactly_their_numbers(decimals: int, ends: tuple[int, int], value: int):
    unit = 10**decimals if decimals else 1000
    low, high = sorted(min(end, unit) for end in ends)
    found = re.fullmatch(span(low, high, decimals), number_text(value, decimals))
    assert bool(found) == (low <= value <= high)


def test_order_of_corners_is_demanded():
    form = Codec().form(Frame((10, 10)))
    narrow = form.narrow("[0.500, 0.250, ")
    assert narrow is not None
    assert re.fullmatch(narrow, "[0.500, 0.250, 0.501, 0.251], 0.500.")
    assert not re.fullmatch(narrow, "[0.500, 0.250, 0.500, 0.251], 0.500.")
    assert not re.fullmatch(narrow, "[0.500, 0.250, 0.501, 0.249], 0.500.")
    assert form.narrow("[0.500, 0.25") is None
    assert form.crosses("[0.500, 0.250, 0")
    assert not form.crosses("[0.500, 0.250, ")
    whole = Codec("thousand").form(Frame((10, 10)))
    assert whole.narrow('{"bbox_2d": [12, 34') is None
    assert whole.first_corner('{"bbox_2d": [12, 34,') == (12, 34)


def test_a_tokenizer_without_commas():
    form = Codec(decimals=2).form(Frame((10, 10))).spelled_by(Grammar(word_level()))
    assert form.sample() == "[0.000.000.500.50]0.50"
    with pytest.raises(ValueError, match="cannot write"):
        Codec(decimals=3).form(Frame((10, 10))).spelled_by(Grammar(word_level()))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(61, 200), (300, 300), (20, 31)])
def test_frame_is_what_the_model_sees(family: str, size: tuple[int, int]):
    processor = build_small(family)[1]
    image = Image.fromarray(np.zeros((*size, 3), np.uint8))
    _, rows, columns = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][
        0
    ].tolist()
    patch = processor.image_processor.patch_size
    assert frame_of(processor, size) == Frame(size, (rows * patch, columns * patch))


def test_refused_settings():
    refused = [({"codec": "xml"}, "unknown codec 'xml'"), ({"decimals": 9}, r"\[2, 4\]")]
    refused += [({"format": "mean"}, "unknown format 'mean'"), ({"template": "x"}, "unknown template 'x'")]
    for settings, said in refused:
        with pytest.raises(ValueError, match=said):
            LocatorConfig(**settings)
    with pytest.raises(ValueError, match="needs a processor that resizes"):
        Codec("pixels").form(Frame((10, 10)))
