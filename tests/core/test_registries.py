"""Entries of installed packages: they are found, and a broken one says what is wrong."""

import importlib
import sys
from abc import ABC, abstractmethod

import pytest

from lowrank.core.registries import Registry, entries_in
from lowrank.errors import UserError

GROUP = "lowrank.shapes"


class Shape(ABC):
    name: str

    @abstractmethod
    def corners(self): ...


class Square(Shape):
    name = "square"

    def corners(self):
        return 4


MODULE = """
from drawn_shapes import Shape

class Triangle(Shape):
    name = "triangle"
    def corners(self):
        return 3

triangle = Triangle()
square = Triangle()
square.name = "square"
hexagon = Triangle()

class Circle(Shape):
    name = "circle"

class Star(Shape):
    name = "star"
    def __init__(self, points):
        self.points = points
    def corners(self):
        return 2 * self.points

class Line:
    name = "line"

class Nameless(Shape):
    def corners(self):
        return 1

number = 7
"""


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Return a function that installs a package with entry points and makes a registry."""
    module = type(sys)("drawn_shapes")
    module.Shape = Shape
    monkeypatch.setitem(sys.modules, "drawn_shapes", module)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "drawn.py").write_text(MODULE)
    (tmp_path / "torn.py").write_text("import a_module_that_is_missing")

    def install(*lines, package="drawings", mistake_in=lambda _: None):
        folder = tmp_path / f"{package}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines]))
        importlib.invalidate_caches()
        return Registry(
            "shape", Shape, group=GROUP, built_in=lambda: [Square()], mistake_in=mistake_in
        )

    yield install
    sys.modules.pop("drawn", None)


def test_entries_of_packages_stand_beside_built_in_ones(registry):
    shapes = registry("triangle = drawn:Triangle")
    assert shapes.names() == list(shapes) == ["square", "triangle"]
    assert "triangle" in shapes
    assert "drawn" not in sys.modules, "listing names imports no plug-in"
    assert shapes.get("triangle").corners() == 3
    assert shapes.get("triangle") is shapes.get("triangle")
    assert shapes.get("square").corners() == 4
    assert shapes.plug_in("square") is None
    assert shapes.plug_in("triangle").module == "drawn"


def test_an_entry_point_may_name_an_instance(registry):
    assert registry("triangle = drawn:triangle").get("triangle").corners() == 3


def test_an_unknown_name_gets_the_nearest(registry):
    shapes = registry("triangle = drawn:Triangle")
    with pytest.raises(UserError, match=r"unknown shape 'triangel'. Did you mean 'triangle'\?"):
        shapes.get("triangel")


BROKEN = {
    "a = torn:A": r"cannot be imported \(ModuleNotFoundError: No module named 'a_module_that_is",
    "a = drawn:Missing": r"cannot be imported \(AttributeError: .*'Missing'",
    "a = drawn:number": "is 7; expected an instance or a subclass of `.*Shape`",
    "line = drawn:Line": "is the class `Line`; expected an instance or a subclass of `.*Shape`",
    "circle = drawn:Circle": r"is a class that cannot be created \(TypeError: .*corners.*\); exp",
    "star = drawn:Star": r"cannot be created .*points.*; expected a class that is created without",
    "a = drawn:Nameless": "has no `name`; expected `name = 'a'`",
    "six = drawn:hexagon": "has the name 'triangle'; expected 'six', the name of the entry point",
    "my-shape = drawn:triangle": "has a name that is not allowed; expected a name of letters",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_broken_package_stops_only_what_uses_it(registry, line):
    shapes = registry(line)
    name = line.partition(" ")[0]
    assert name in shapes
    assert shapes.get("square").corners() == 4
    assert list(shapes.usable()) == ["square"]
    with pytest.raises(UserError, match=BROKEN[line]) as error:
        shapes.get(name)
    message = str(error.value)
    assert message.startswith(f"shape '{name}': the entry point `{line}` in the group '{GROUP}' of")
    assert "the package 'drawings' 1.2" in message
    assert message.endswith("Correct or update the package, or uninstall it.")


def test_a_kind_can_refuse_an_entry(registry):
    shapes = registry("triangle = drawn:Triangle", mistake_in=lambda shape: "has three corners")
    with pytest.raises(UserError, match=r"'drawings' 1.2 has three corners. Correct or"):
        shapes.get("triangle")
    assert shapes.get("square").corners() == 4


def test_a_name_of_lowrank_that_a_package_takes_is_ambiguous(registry):
    shapes = registry("square = drawn:square", "triangle = drawn:Triangle")
    assert shapes.get("triangle").corners() == 3
    expected = r"'square': the name is taken twice, by lowrank itself and by the package 'drawings'"
    with pytest.raises(UserError, match=expected):
        shapes.get("square")


def test_a_name_of_two_packages_is_ambiguous(registry):
    registry("triangle = drawn:Triangle", package="others")
    shapes = registry("triangle = drawn:Triangle")
    expected = r"taken twice, by the package '\w+' 1.2 \(`drawn:Triangle`\) and by the package '\w+"
    with pytest.raises(UserError, match=expected):
        shapes.get("triangle")
    assert list(shapes.usable()) == ["square"]


def test_two_built_in_entries_of_one_name_are_a_mistake():
    shapes = Registry("shape", Shape, group=GROUP, built_in=lambda: [Square(), Square()])
    with pytest.raises(ValueError, match="two built-in entries have the name 'square'"):
        shapes.get("square")


def test_modules_of_a_package_list_their_entries(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings/__init__.py").touch()
    (tmp_path / "drawings/helper.py").write_text("HELP = 1")
    (tmp_path / "drawings/two.py").write_text("ENTRIES = ('second', 'third')")
    (tmp_path / "drawings/one.py").write_text("ENTRIES = ('first',)")
    assert list(entries_in("drawings.")) == ["first", "second", "third"]


def test_an_entry_can_be_added_for_a_while():
    shapes = Registry("shape", Shape, group=GROUP, built_in=list)
    with shapes.added(Square()):
        assert shapes.names() == ["square"]
        assert shapes.get("square").corners() == 4
    assert "square" not in shapes
