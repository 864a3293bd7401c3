"""Reading open layers back, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from traitscope.captures.files import internals_file
from traitscope.errors import InputError, RunError
from traitscope.tensor_names import EVERY_STORED

if TYPE_CHECKING:
    import torch

ReadTensor = Callable[[], np.ndarray]


class OpenLayer:
    """One open layer of one generation; each tensor is read when it is asked for.

    Every tensor is an array, float32 (a narrower dtype on disk is widened, which is exact) or int64. Which there are
    is up to what the suite kept, see ``names``:

    ``q`` ``[heads, seq, d_head]``, ``k``, ``v`` ``[kv_heads, seq, d_head]``, ``pattern`` ``[heads, seq, seq]``,
    ``head_out`` ``[heads, seq, d_head]``, ``neurons`` ``[seq, d_mlp]``, ``attn_out``, ``mlp_out`` ``[seq, d_model]``;
    where the model has them ``sink`` ``[heads, seq]``, and of a mixture of experts ``neurons``
    ``[seq, top_k, d_expert]`` with ``experts`` and ``router`` ``[seq, top_k]``.
    """

    def __init__(self, generation: str, layer: int, tensors: Mapping[str, ReadTensor]) -> None:
        self.generation = generation
        self.layer = layer
        self._tensors = dict(tensors)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that were kept."""
        return tuple(name for name in EVERY_STORED if name in self._tensors)

    def __getattr__(self, name: str) -> np.ndarray:
        tensors = self.__dict__.get("_tensors", {})
        if name in tensors:
            return tensors[name]()
        if name in EVERY_STORED:
            raise AttributeError(f"{name} of layer {self.layer} was not kept; kept: {', '.join(self.names)}")
        raise AttributeError(f"an open layer has no {name}; kept: {', '.join(self.names)}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    def __repr__(self) -> str:
        return f"OpenLayer({self.generation}, layer {self.layer}: {', '.join(self.names)})"


def stored_tensors(run_dir: Path, shards: Sequence[int]) -> dict[str, ReadTensor]:
    """How to read every tensor of a run's open layers, by ``<generation>/<layer>/<tensor>``; only headers are read.

    Raises:
        RunError: a file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, ReadTensor] = {}
    for path in (internals_file(run_dir, shard) for shard in shards):
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
            except SafetensorError as error:
                raise RunError(f"{path} is damaged: {error}; traitscope verify says what else is") from None
            found |= {name: _reading(path, name) for name in names}
    return found


def held_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, ReadTensor]:
    """The same for tensors in memory."""
    return {name: lambda tensor=tensor: as_array(tensor) for name, tensor in tensors.items()}  # type: ignore[misc]


def _reading(path: Path, name: str) -> ReadTensor:
    def read() -> np.ndarray:
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            return as_array(file.get_tensor(name))

    return read


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; floating-point dtypes become float32."""
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def open_layer(tensors: Mapping[str, ReadTensor], generation: str, layer: int, title: str) -> OpenLayer:
    """One layer of one generation among a run's tensors.

    Raises:
        InputError: that layer was not opened for that generation; names those that were.
    """
    prefix = f"{generation}/{layer}/"
    own = {name.removeprefix(prefix): read for name, read in tensors.items() if name.startswith(prefix)}
    if own:
        return OpenLayer(generation, layer, own)
    opened = sorted({int(name.split("/")[1]) for name in tensors if name.startswith(f"{generation}/")})
    if opened:
        raise InputError(f"layer {layer} of generation {generation} was not opened; open: {opened}")
    generations = sorted({name.split("/")[0] for name in tensors})
    raise InputError(
        f"no generation with the id {generation!r} has open layers in {title}; "
        + (f"ids that have: {', '.join(generations[:5])}" if generations else "the suite asked for no internals")
    )
