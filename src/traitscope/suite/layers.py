"""Which layers a capture asks for, as written in a suite: ``all``, ``readout``, 15, -1, ``4-12``, lists."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import StrictInt, StrictStr

from traitscope.errors import InputError

LayerSpec = StrictInt | StrictStr | list[StrictInt | StrictStr]
_RANGE = re.compile(r"(\d+)-(\d+)")


def layer_spec_problem(spec: object) -> str | None:
    """What is wrong with the form of ``spec``, or None."""
    if spec == []:
        return "an empty list asks for no layer"
    for part in spec if isinstance(spec, list) else [spec]:
        named = isinstance(part, str) and (part in ("all", "readout") or _RANGE.fullmatch(part))
        if not named and (isinstance(part, bool) or not isinstance(part, int)):
            return f"{part!r} is no layer: use all, readout, a number, a range like 4-12, or a list of these"
    return None


def select_layers(spec: LayerSpec, n_layers: int, readout_layers: Iterable[int]) -> frozenset[int]:
    """The absolute layer numbers that ``spec`` means in a model of ``n_layers``.

    Raises:
        InputError: a layer is out of range.
    """
    selected: set[int] = set()
    for part in spec if isinstance(spec, list) else [spec]:
        if part == "all":
            selected.update(range(n_layers))
        elif part == "readout":
            selected.update(readout_layers)
        else:
            selected.update(_numbered(part, n_layers))
    return frozenset(selected)


def _numbered(part: int | str, n_layers: int) -> range:
    if isinstance(part, int):
        first = last = part + n_layers if part < 0 else part
    else:
        matched = _RANGE.fullmatch(part)
        assert matched is not None
        first, last = int(matched[1]), int(matched[2])
        if first > last:
            raise InputError(f"layer range {part} runs backwards; write {last}-{first}")
    if not 0 <= first <= last < n_layers:
        raise InputError(f"layer {part} is out of range: the model has layers 0 to {n_layers - 1}")
    return range(first, last + 1)
