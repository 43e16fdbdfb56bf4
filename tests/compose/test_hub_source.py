"""Modules become one file: what a name needs, as it is written, and nothing else."""

from pathlib import Path

import pytest

from compose.hub import source
from compose.hub.source import Bundle, Definition


def module(root: Path, name: str, text: str) -> None:
    file = root / f"{name.replace('.', '/')}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of three modules; returns what `write` makes of a name there."""
    module(tmp_path, "low.__init__", "")
    module(
        tmp_path,
        "low.numbers",
        '''"""Numbers: all of them."""
from typing import TYPE_CHECKING
import os.path
import numpy as np
if TYPE_CHECKING:
    from decimal import Decimal
SIZES = {"a": 1}
SIZES["b"] = 2
UNUSED = np.zeros(3)
first, second = 1, 2


def double(x: "Decimal") -> int:
    """Twice."""
    SIZES = 2  # a local name
    return SIZES * x


def unused(x):
    return os.path.join(x)


def nested():
    def inner():
        return 5

    return inner
''',
    )
    module(
        tmp_path,
        "low.shapes",
        '''"""Shapes."""
from functools import cached_property
from low.numbers import SIZES, double, nested, second


class Shape:
    """A shape."""

    side: int = second  # kept

    def area(self) -> int:
        """Its area."""
        return double(self.side)

    @cached_property
    def kept(self):
        return SIZES["b"] * nested()() // 5

    def dropped(self):
        return first_of_nothing
''',
    )
    module(
        tmp_path,
        "top",
        '''"""The top."""
from low import shapes
from low.shapes import double as twice


class Square(shapes.Shape):
    """Four sides."""

    def __call__(self):
        return twice(self.kept)
''',
    )
    monkeypatch.setattr(source, "ROOT", tmp_path)
    source.read_module.cache_clear()
    yield lambda name, *left_out: Bundle([Definition("top", name)], left_out).write("One file.")
    source.read_module.cache_clear()


def test_a_class_comes_with_all_that_it_reads_and_nothing_else(project):
    text = project("Square")
    space: dict = {}
    exec(text.replace("twice", "double"), space)  # an import under another name is not followed
    assert space["Square"]()() == 4
    assert 'SIZES["b"] = 2' in text
    assert "first, second = 1, 2" in text
    assert "# low.numbers: Numbers: all of them." in text
    for absent in ("UNUSED", "unused", "dropped", "area", "os.path", "numpy", "from low", "import low"):
        assert absent not in text, absent
    assert text.index("def double") < text.index("class Shape") < text.index("class Square")


def test_a_class_may_be_left_without_a_method_that_is_named(project):
    assert "def kept" in project("Square")
    assert "def kept" not in project("Square", "Shape.kept")


def test_a_name_that_two_modules_define_differently_is_refused(project, tmp_path):
    module(tmp_path, "low.other", "def double(x):\n    return x\n")
    module(
        tmp_path,
        "top",
        "from low import other, numbers\n\n\ndef go():\n    return other.double, numbers.double\n",
    )
    source.read_module.cache_clear()
    with pytest.raises(ValueError, match="two modules define double, one of them low"):
        project("go")
