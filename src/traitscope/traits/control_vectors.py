"""GGUF control vectors, as llama.cpp reads them.

llama.cpp adds ``direction.N`` to what leaves its layer N, counted from 0: its loader puts ``direction.N`` at row N - 1
of a buffer whose first row belongs to layer 1 (``common_control_vector_load``, ``llama_adapter_cvec::apply``). So
``direction.N`` is of ``resid_post.N``; there is none of ``resid_post.0``, and ``direction.0`` is refused there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from traitscope.errors import InputError, one_line_of

ARCHITECTURE = "controlvector"
FIRST_LAYER = 1
_DIRECTION = re.compile(r"direction\.(\d+)")


def read_control_vector(path: Path) -> dict[int, torch.Tensor]:
    """The directions ``[d_model]`` float32 of a control vector, by layer.

    Raises:
        InputError: no GGUF file, another kind of GGUF file, or tensors that llama.cpp would refuse.
    """
    from gguf import GGMLQuantizationType, GGUFReader

    try:
        reader = GGUFReader(path)
    except Exception as error:  # the reader names no kind of error for a damaged file
        raise InputError(f"{path}: no readable GGUF file: {one_line_of(error)}") from None
    field = reader.get_field("general.architecture")
    architecture = None if field is None else field.contents()
    if architecture != ARCHITECTURE:
        raise InputError(f"{path}: no control vector: its general.architecture is {architecture}")
    found: dict[int, torch.Tensor] = {}
    for tensor in reader.tensors:
        named = _DIRECTION.fullmatch(tensor.name)
        if named is None or int(named[1]) < FIRST_LAYER:
            raise InputError(f"{path}: tensor {tensor.name} is none of direction.1, direction.2, …")
        if tensor.tensor_type != GGMLQuantizationType.F32:
            raise InputError(f"{path}: tensor {tensor.name} is {tensor.tensor_type.name}, not F32")
        found[int(named[1])] = torch.from_numpy(np.array(tensor.data, dtype=np.float32))
    return found


def control_vector_bytes(
    directions: Mapping[int, torch.Tensor], model_hint: str | None, metadata: Mapping[str, str]
) -> bytes:
    """The content of a GGUF control vector.

    Args:
        directions: ``[d_model]`` by layer, none of layer 0.
        model_hint: the architecture of the model, which readers may compare with theirs.
        metadata: further fields; llama.cpp ignores those that it does not know.
    """
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.gguf"  # the writer opens its file itself
        writer = GGUFWriter(path, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or "")
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
        for key, value in metadata.items():
            writer.add_string(key, value)
        for layer, direction in sorted(directions.items()):
            writer.add_tensor(f"direction.{layer}", direction.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()
