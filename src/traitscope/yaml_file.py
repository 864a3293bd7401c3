"""Reading YAML so that every error can name its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from traitscope.errors import InputError, near_names

Model = TypeVar("Model", bound=pydantic.BaseModel)
Location = tuple[str | int, ...]


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: the file is missing, unreadable or not UTF-8; names file and place.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{what} {path}: no such file") from None
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{what} {path}, line {line}: not UTF-8; save the file as UTF-8") from None


def read_model(path: Path, model: type[Model], what: str) -> Model:
    """A YAML file as a pydantic model.

    Raises:
        InputError: missing file, broken YAML, duplicate or unknown key, wrong value; names file, line, key.
    """
    return parse_model(read_text(path, what), str(path), model, what)


def parse_model(text: str, name: str, model: type[Model], what: str) -> Model:
    """``read_model`` for a text that is read already; ``name`` stands for the file in messages."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{what} {name}{_yaml_problem(error)}") from None
    if node is None:
        raise InputError(f"{what} {name}: the file is empty")
    lines: dict[Location, int] = {}
    _note_lines(node, (), lines, f"{what} {name}")
    try:
        return model.model_validate(yaml.safe_load(text))
    except pydantic.ValidationError as error:
        raise InputError(_first_problem(error, lines, model, f"{what} {name}")) from None
    except yaml.YAMLError as error:
        raise InputError(f"{what} {name}{_yaml_problem(error)}") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{place}: broken YAML: {getattr(error, 'problem', None) or 'unreadable'}"


def _note_lines(node: yaml.Node, location: Location, lines: dict[Location, int], where: str) -> None:
    lines.setdefault(location, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise InputError(f"{where}, line {key.start_mark.line + 1}: key {key.value!r} stands twice")
            seen.add(key.value)
            lines[(*location, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*location, key.value), lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*location, index), lines, where)


def _first_problem(
    error: pydantic.ValidationError, lines: dict[Location, int], model: type[pydantic.BaseModel], where: str
) -> str:
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]
    location, line = _place(problem["loc"], lines)
    field = ".".join(str(part) for part in location) or "the file"
    place = f"{where}, line {line}: {field}"
    if problem["type"] == "extra_forbidden":
        return f"{place}: {_unknown_key(str(problem['loc'][-1]), model)}"
    if problem["type"] == "model_type":
        return f"{place}: must be a mapping of keys to values"
    if problem["type"] == "missing":
        return f"{place}: {problem['loc'][-1]} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]}"


def _place(location: Sequence[str | int], lines: dict[Location, int]) -> tuple[Location, int]:
    """The part of a pydantic location that exists in the file (unions add names of types), and its line."""
    found: Location = ()
    for part in location:
        if (*found, part) in lines:
            found = (*found, part)
    return found, lines[found]


def _unknown_key(key: str, model: type[pydantic.BaseModel]) -> str:
    homes = _field_homes(model)
    if key in homes:
        return f"unknown key here; it belongs under {homes[key] or 'the top of the file'}"
    return f"unknown key; {near_names(key, homes)}"


def _field_homes(model: type[pydantic.BaseModel], path: str = "") -> dict[str, str]:
    """Every field's name in ``model`` and the models inside it, and where it belongs."""
    homes = dict.fromkeys(model.model_fields, path)
    for name, field in model.model_fields.items():
        for nested in _models_in(field.annotation):
            homes = {**_field_homes(nested, f"{path}.{name}" if path else name), **homes}
    return homes


def _models_in(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    found: list[type[pydantic.BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found += _models_in(argument)
    return found
