"""What a job file can name: built in, registered, or by its place; and what it says of other names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from headrace import registry
from headrace.config import Config
from headrace.errors import ConfigError
from headrace.registry import NamedConfig, OneOf, Registry
from headrace.user_code import no_imports

SHAPES: Registry[type[Shape]] = Registry("shape")


class Shape(NamedConfig):
    registry: ClassVar[Registry[type[Shape]]] = SHAPES


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = Field(default=1.0, gt=0)


class Square(Shape):
    kind: Literal["square"]
    width: float


SHAPES.register("circle", Circle)
SHAPES.register("square", Square)


class Drawing(Config):
    shape: Shape = Circle()
    name: Annotated[str, OneOf(SHAPES, "none")] | None = None


@pytest.fixture
def own_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_shapes.py").write_text(
        f"from {__name__} import Shape\nclass Star(Shape):\n    points: int = 5\nnumber = 3\n"
    )
    yield
    sys.path[:] = path
    sys.modules.pop("own_shapes", None)


CONFIGS = [
    registry.MODELS,
    registry.DENSE_OPTIMIZERS,
    registry.SPARSE_OPTIMIZERS,
    registry.LEARNING_RATE_SCHEDULES,
]


@pytest.mark.parametrize("names", [registry.TUNERS, registry.STEP_POLICIES])
def test_every_policy_can_be_imported(names: Registry[object]) -> None:
    assert all(names.values())


@pytest.mark.parametrize("names", CONFIGS)
def test_a_config_has_the_kind_it_is_registered_by(names: Registry[type[Config]]) -> None:
    for name in names:
        assert names[name].model_fields["kind"].annotation == Literal[name]  # type: ignore[valid-type]


def test_a_kind_is_found_and_written_as_it_was_read() -> None:
    drawing = Drawing.from_dict({"shape": {"kind": "square", "width": 2}}, where="job.yaml")
    assert drawing.shape == Square(kind="square", width=2)
    assert drawing.to_yaml() == "shape:\n  kind: square\n  width: 2.0\n"
    assert Drawing().shape == Circle()
    assert Drawing(shape=Circle(radius=3)).shape == Circle(radius=3)


def test_a_kind_of_ones_own_is_named_by_its_place(own_shape: None) -> None:
    drawing = Drawing.from_dict({"shape": {"kind": "own_shapes:Star", "points": 7}}, where="job.yaml")
    assert drawing.shape.model_dump() == {"kind": "own_shapes:Star", "points": 7}
    assert Drawing.from_dict(drawing.model_dump(exclude_none=True), where="config.yaml") == drawing


def test_a_file_of_somebody_else_imports_nothing(own_shape: None) -> None:
    values = {"shape": {"kind": "own_shapes:Star"}}
    with no_imports(), pytest.raises(ConfigError, match=r"own_shapes:Star: not imported.* import own_shapes before"):
        Drawing.from_dict(values, where="export")
    assert "own_shapes" not in sys.modules
    trusted = Drawing.from_dict(values, where="job.yaml")
    with no_imports():
        assert Drawing.from_dict(values, where="export") == trusted


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {"kind": "circel"},
            "shape.kind: given 'circel', expected: one of circle, square, package.module:name .*circle",
        ),
        ({"kind": 3}, "shape.kind: given 3, expected: one of circle"),
        ({}, "shape.kind: missing"),
        (3, "shape: given 3, expected: a mapping with `kind`"),
        ({"kind": "square"}, "shape.width: missing"),
        ({"kind": "circle", "radius": 0}, "shape.radius: given 0, expected: greater than 0"),
        (
            {"kind": "circle", "radios": 1},
            r"shape.radios: unknown key, expected one of: kind, radius \(did you mean radius",
        ),
        ({"kind": "no_such_module:Star"}, "shape.kind: shape: no_such_module:Star: no module no_such_module"),
        ({"kind": "json:JSONDecoder"}, "shape.kind: given 'json:JSONDecoder', expected: a subclass of .*Shape"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_was_expected(shape: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^job.yaml: {message}"):
        Drawing.from_dict({"shape": shape}, where="job.yaml")


def test_a_name_alone_is_checked() -> None:
    assert [Drawing(name=name).name for name in ("circle", "none", None)] == ["circle", "none", None]
    with pytest.raises(ConfigError, match="name: given 'oval', expected: one of circle, square"):
        Drawing.from_dict({"name": "oval"}, where="job.yaml")


def test_two_things_of_one_name_are_refused_and_so_is_a_colon() -> None:
    with pytest.raises(ConfigError, match=r"shape circle: registered twice, as .*Circle and .*Square"):
        SHAPES.register("circle", Square)
    SHAPES.register("circle", Circle)
    with pytest.raises(ConfigError, match="without a colon"):
        SHAPES.register("my:circle", Circle)
