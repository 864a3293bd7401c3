"""Bugs caught here: a layer off by one in llama.cpp, a scale that is not alpha, a file overwritten, a verdict lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from safetensors import safe_open

from random_traits import random_vectors
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.traits.control_vectors import read_control_vector
from traitscope.traits.direction_files import read_directions
from traitscope.traits.exporting import export_vectors, model_hint
from traitscope.traits.importing import TraitLabels, convention_of, import_vectors
from traitscope.traits.vectors import TraitVectors, save_vectors


@pytest.fixture
def vectors(tiny: Callable[..., LanguageModel]) -> TraitVectors:
    made = random_vectors(tiny("llama"), 1)
    calibration = replace(made.calibration, norm=torch.arange(1.0, 8.0))
    origin = replace(made.origin, verdict="validated")
    return replace(made, steerer=made.steerer.flip(0), calibration=calibration, origin=origin)


def _partial(vectors: TraitVectors, without: str) -> TraitVectors:
    reader, steerer = vectors.reader.clone(), vectors.steerer.clone()
    reader[vectors.checkpoints.index(without)] = steerer[vectors.checkpoints.index(without)] = torch.nan
    return replace(vectors, reader=reader, steerer=steerer)


def test_a_control_vector_holds_what_llama_cpp_adds_to_each_layers_output(
    vectors: TraitVectors, tmp_path: Path
) -> None:
    path = tmp_path / "v.gguf"
    assert export_vectors(vectors, path, architecture="llama") == [1, 2]
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert fields["traitscope.verdict"] == "validated"
    assert fields["traitscope.trait"] == "random1"
    assert fields["traitscope.scale"] == "norm"
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
    for tensor in reader.tensors:
        # llama.cpp: buffer row N - 1 for direction.N, added to the output of layer 1 + that row.
        index = vectors.checkpoints.index(f"resid_post.{tensor.name.removeprefix('direction.')}")
        assert (tensor.tensor_type.name, list(tensor.shape)) == ("F32", [32])
        np.testing.assert_allclose(tensor.data, vectors.steerer[index] * (1 + index), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
@pytest.mark.parametrize("scale", ["unit", "norm"])
def test_what_is_exported_comes_back(
    tiny: Callable[..., LanguageModel], vectors: TraitVectors, tmp_path: Path, suffix: str, scale: str
) -> None:
    part = _partial(vectors, "resid_post.2")
    path = tmp_path / f"v{suffix}"
    layers = export_vectors(part, path, direction="reader", scale=scale)
    file = read_directions(path)
    again = import_vectors(tiny("llama"), file, convention_of(file, None), TraitLabels.of("again", None, None, None))
    assert list(again.covered_names) == [f"resid_post.{layer}" for layer in layers]
    assert layers == ([1] if suffix == ".gguf" else [0, 1])
    for name in again.covered_names:
        index = again.checkpoints.index(name)
        torch.testing.assert_close(again.reader[index], part.reader[index])
        expected = 1 + index if scale == "norm" else 1
        assert again.origin.method["norms"][name] == pytest.approx(expected, rel=1e-5)


def test_safetensors_say_what_they_hold(vectors: TraitVectors, tmp_path: Path) -> None:
    export_vectors(vectors, tmp_path / "v.safetensors")
    with safe_open(tmp_path / "v.safetensors", framework="pt") as file:
        metadata, direction = file.metadata(), file.get_tensor("direction")
    posts = [vectors.checkpoints.index(f"resid_post.{layer}") for layer in range(3)]
    assert torch.equal(direction, vectors.steerer[posts])
    said = {name: metadata[name] for name in ("trait", "convention", "scale", "verdict", "model")}
    assert list(said.values()) == ["random1", "resid_post", "unit", "validated", "LlamaForCausalLM"]


def test_nothing_is_overwritten_and_nothing_empty_written(
    command: Any, vectors: TraitVectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_vectors(vectors, tmp_path / "ours.safetensors")
    code, out, _ = command("traits", "export", "./ours.safetensors", "--to", "v.gguf")
    assert (code, out) == (
        0,
        "wrote v.gguf: steerer of random1 at resid_post of 2 layers, 1 to 2; R = resid_mid.2; validated\n",
    )
    before = (tmp_path / "v.gguf").read_bytes()
    for arguments, message in [
        (["--to", "v.gguf"], "--to v.gguf: exists already"),
        (["--to", "v.pt"], "--to v.pt: unknown kind of file; use .gguf or .safetensors"),
        (["--to", "w.gguf", "--direction", "both"], "--direction both: use steerer or reader"),
        (["--to", "w.gguf", "--scale", "alpha"], "--scale alpha: use unit or norm"),
        (["--to", "none/w.gguf"], "--to none/w.gguf: cannot be written: No such file"),
    ]:
        code, out, err = command("traits", "export", "./ours.safetensors", *arguments)
        assert (code, out) == (2, "")
        assert message in err
    assert (tmp_path / "v.gguf").read_bytes() == before
    only_first = _partial(_partial(vectors, "resid_post.1"), "resid_post.2")
    with pytest.raises(InputError, match="no direction that such a file can hold"):
        export_vectors(only_first, tmp_path / "w.gguf")
    assert {path.name for path in tmp_path.iterdir()} == {"ours.safetensors", "v.gguf"}


@pytest.mark.parametrize(
    ("architecture", "name", "dtype", "message"),
    [
        ("llama", "direction.1", np.float32, "no control vector: its general.architecture is llama"),
        ("controlvector", "direction.0", np.float32, "tensor direction.0 is none of direction.1, direction.2"),
        ("controlvector", "direction.x", np.float32, "tensor direction.x is none of"),
        ("controlvector", "direction.1", np.float16, "tensor direction.1 is F16, not F32"),
    ],
)
def test_gguf_files_that_llama_cpp_would_refuse(
    tmp_path: Path, architecture: str, name: str, dtype: Any, message: str
) -> None:
    writer = GGUFWriter(tmp_path / "v.gguf", architecture)
    writer.add_tensor(name, np.ones(32, dtype=dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=message):
        read_control_vector(tmp_path / "v.gguf")


def test_the_architecture_has_llama_cpps_name(tiny_directory: Path) -> None:
    assert model_hint(str(tiny_directory)) == "llama"
    assert model_hint("./nowhere") is None
