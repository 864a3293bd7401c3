"""Bugs caught here: a wrong tensor of an open layer that verify lets pass, a right one that it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny_models import CONFIGS
from traitscope.captures.files import done_file, internals_file, read_done
from traitscope.captures.integrity import sha256_of
from traitscope.model.loading import LanguageModel
from traitscope.run.commit import write_json, write_tensors
from traitscope.verify.stored import check_stored
from traitscope.verify.verdict import verify_run

RunTiny = Callable[..., tuple[Path, LanguageModel]]
OPENED = {"capture": {"internals": {"layers": "all"}}}
Tensors = dict[str, torch.Tensor]


def _rewritten(run_dir: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Change tensors as a faulty writer would have: size and checksum of the commit fit the file."""
    path = internals_file(run_dir, 0)
    changed = {name: change(name, tensor) for name, tensor in load_file(path).items()}
    write_tensors(path, {name: tensor.contiguous() for name, tensor in changed.items() if tensor is not None})
    done = read_done(run_dir, 0)
    done["files"][path.name] |= {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(done_file(run_dir, 0), done)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_open_layers_of_a_clean_run_pass(run_tiny: RunTiny, architecture: str, dtype: str) -> None:
    run_dir, model = run_tiny(architecture, dtype, prompts=["sun number 1", "rain"], **OPENED)
    verdict = verify_run(run_dir, model, deep=True)
    assert verdict.problems == ()
    assert internals_file(run_dir, 0).is_file()


FAULTS: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "heads in another order": ("pattern", lambda t: t.flip(0)),
    "rows shifted by one": ("pattern", lambda t: t.roll(1, dims=1)),
    "a window or mask ignored": ("pattern", lambda t: (t + t.transpose(1, 2)) / 2),
    "values of another kv head": ("v", lambda t: t.flip(0)),
    "keys before the rotary embedding, say": ("k", lambda t: t.roll(1, dims=2)),
    "heads behind another projection": ("head_out", lambda t: t.flip(0)),
    "the gate instead of the neurons": ("neurons", lambda t: t.roll(1, dims=1)),
    "an output before its norm, say": ("attn_out", lambda t: 1.01 * t),
    "the next token's output": ("mlp_out", lambda t: t.roll(-1, dims=0)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_tensor_is_named(opened_run: tuple[Path, LanguageModel], tmp_path: Path, fault: str) -> None:
    run_dir = shutil.copytree(opened_run[0], tmp_path / "run")
    wrong, change = FAULTS[fault]
    target = next(name for name in load_file(internals_file(run_dir, 0)) if name.endswith(f"/1/{wrong}"))
    _rewritten(run_dir, lambda name, tensor: change(tensor) if name == target else tensor)
    problems = verify_run(run_dir, opened_run[1]).problems
    generation = target.split("/")[0]
    assert problems
    assert all(f"generation {generation}" in line and "layer 1:" in line for line in problems)
    assert any(wrong in line for line in problems)


def test_a_tensor_that_is_not_there_is_named(opened_run: tuple[Path, LanguageModel], tmp_path: Path) -> None:
    run_dir = shutil.copytree(opened_run[0], tmp_path / "run")
    target = next(name for name in load_file(internals_file(run_dir, 0)) if name.endswith("/2/q"))
    _rewritten(run_dir, lambda name, tensor: None if name == target else tensor)
    (problem,) = check_stored(run_dir).problems
    assert "0000.internals.safetensors lacks q of layer 2" in problem


def test_a_tensor_without_a_row_for_every_position_is_named(
    opened_run: tuple[Path, LanguageModel], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(opened_run[0], tmp_path / "run")
    target = next(name for name in load_file(internals_file(run_dir, 0)) if name.endswith("/0/neurons"))
    _rewritten(run_dir, lambda name, tensor: tensor[:-1] if name == target else tensor)
    (problem,) = check_stored(run_dir).problems
    assert "neurons of layer 0 has shape" in problem
