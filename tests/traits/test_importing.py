"""Bugs caught here: a direction a layer off, code run from a pickle, other models' directions, zeros taken for one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from independent import independent_states
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay_scores
from traitscope.traits.direction_files import read_directions
from traitscope.traits.importing import TraitLabels, convention_of, import_vectors
from traitscope.traits.store import bank_of
from traitscope.traits.vectors import TraitVectors, load_vectors

TOKENS = [1, 40, 90, 17, 200, 33]
AT = 3
LABELS = TraitLabels.of("evil", None, None, None)


@pytest.fixture
def model(tiny: Callable[..., LanguageModel]) -> LanguageModel:
    return tiny("llama")


@pytest.fixture
def hidden_states(model: LanguageModel) -> torch.Tensor:
    """``[4, 32]``: transformers' own ``hidden_states`` at one token, the last one behind the final norm."""
    with torch.inference_mode():
        output = model.module(input_ids=torch.tensor([TOKENS]), use_cache=False, output_hidden_states=True)
    return torch.stack([state[0, AT] for state in output.hidden_states]).clone()


def _imported(model: LanguageModel, path: Path, given: str | None = None, **options: Any) -> TraitVectors:
    reading = {name: options.pop(name) for name in ("tensor", "layer") if name in options}
    file = read_directions(path, **reading)
    return import_vectors(model, file, convention_of(file, given), LABELS, **options)


def _saved(content: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("convention", "n_rows", "covered"),
    [
        ("hidden_states", 4, ["resid_pre.0", "resid_post.0", "resid_post.1"]),
        ("hidden_states", 3, ["resid_pre.0", "resid_post.0", "resid_post.1"]),
        ("resid_pre", 3, ["resid_pre.0", "resid_post.0", "resid_post.1"]),
        ("resid_post", 3, ["resid_post.0", "resid_post.1", "resid_post.2"]),
    ],
)
def test_each_convention_puts_a_row_at_the_state_that_it_belongs_to(
    model: LanguageModel, hidden_states: torch.Tensor, tmp_path: Path, convention: str, n_rows: int, covered: list[str]
) -> None:
    """Row i is the state itself at one token, so that its score there is the state's norm, as nothing else's is."""
    rows = hidden_states[:n_rows]
    if convention == "resid_post":
        last = independent_states(model.module, "llama", TOKENS)["resid_post.2"][AT]
        rows = torch.stack([*hidden_states[1:3], last])
    vectors = _imported(model, _saved(rows.clone(), tmp_path / "v.pt"), convention)
    assert list(vectors.covered_names) == covered
    trace = replay_scores(model, TOKENS, [], bank_of([vectors])).trace
    assert trace is not None
    np.testing.assert_allclose(trace.scores[:, AT, 0], np.where(vectors.covered, trace.norms[:, AT], np.nan), rtol=1e-5)
    behind = vectors.origin.method["dropped"]
    assert [row.split(":")[0] for row in behind] == (["hidden_states[3]"] if n_rows == 4 else [])
    np.testing.assert_allclose(list(vectors.origin.method["norms"].values()), rows[:3].norm(dim=-1), rtol=1e-5)


def test_rows_are_unit_and_the_same_for_reading_and_steering(
    model: LanguageModel, hidden_states: torch.Tensor, tmp_path: Path
) -> None:
    rows = hidden_states[:3].clone()
    rows[0] = 0
    vectors = _imported(model, _saved(7 * rows.double(), tmp_path / "v.pt"), "resid_post")
    assert list(vectors.covered_names) == ["resid_post.1", "resid_post.2"]
    covered = vectors.covered
    torch.testing.assert_close(vectors.reader[covered].norm(dim=-1), torch.ones(2))
    assert torch.equal(vectors.reader[covered], vectors.steerer[covered])
    assert vectors.origin.verdict == "unvalidated"
    assert vectors.readout_name == "resid_post.1"
    assert torch.isfinite(vectors.calibration.std["response_token"][covered]).all()
    assert vectors.calibration.mean["response_token"][~covered].isnan().all()
    assert torch.isfinite(vectors.calibration.norm).all()


def test_directions_by_number_by_name_and_alone(tmp_path: Path) -> None:
    row = torch.arange(32.0)
    contents: list[tuple[Any, str, dict[str, Any], str | None]] = [
        ({2: row}, "a.pt", {}, None),
        ({"layer.2": row}, "a.safetensors", {}, None),
        ({"2": row}, "b.safetensors", {}, None),
        ({"resid_pre.2": row}, "c.safetensors", {}, "resid_pre"),
        (row, "b.pt", {"layer": 2}, None),
        ({"up": row, "down": -row}, "d.safetensors", {"layer": 2, "tensor": "up"}, None),
    ]
    for content, name, options, convention in contents:
        file = read_directions(_saved(content, tmp_path / name), **options)
        assert (list(file.rows), file.n_rows, file.convention) == ([2], None, convention), name
        assert torch.equal(file.rows[2], row)


class _Bomb:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._target),)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"v": torch.ones(3, 32), "more": _Bomb(tmp_path / "ran")}, tmp_path / "v.pt")
    with pytest.raises(InputError, match=r"v\.pt: holds more than tensors, and loading that could run code"):
        read_directions(tmp_path / "v.pt")
    assert not (tmp_path / "ran").exists()


ROWS = torch.ones(3, 32)
BAD: list[tuple[Any, str, dict[str, Any], str]] = [
    (ROWS, "v.pt", {}, r"can be a layer off.*resid_post.*resid_pre.*hidden_states"),
    (ROWS, "v.pt", {"given": "resid_mid"}, "--convention resid_mid: use resid_post, resid_pre, hidden_states"),
    ({"resid_pre.1": ROWS[0]}, "v.safetensors", {"given": "resid_post"}, "resid_pre by its own account"),
    (ROWS[:, :16], "v.pt", {"given": "resid_post"}, "row 0 has 16 values, but d_model of LlamaForCausalLM is 32"),
    (torch.ones(5, 32), "v.pt", {"given": "hidden_states"}, "5 rows, but hidden_states of .* 3 layers, has 4"),
    (torch.ones(4, 32), "v.pt", {"given": "resid_post"}, "4 rows, .* has 3; so many are its hidden_states"),
    ({3: ROWS[0]}, "v.pt", {"given": "resid_post"}, "layer 3: resid_post of LlamaForCausalLM has 0 to 2"),
    (ROWS * torch.nan, "v.pt", {"given": "resid_post"}, "row 0 holds values that are not finite"),
    (torch.zeros(3, 32), "v.pt", {"given": "resid_post"}, "holds no direction of a resid_post"),
    ({3: ROWS[0]}, "v.pt", {"given": "hidden_states"}, "holds no direction of a resid_post"),
    (ROWS.long(), "v.pt", {"given": "resid_post"}, "row 0 is no dense tensor of floating-point numbers"),
    (ROWS[0], "v.pt", {"given": "resid_post"}, "holds one direction; say with --layer"),
    (ROWS, "v.pt", {"given": "resid_post", "layer": 1}, "holds 3 rows, one a layer; leave out --layer"),
    (ROWS[None], "v.pt", {"given": "resid_post"}, r"has shape \[1, 3, 32\]"),
    ([ROWS], "v.pt", {"given": "resid_post"}, "holds a list"),
    ({"a": ROWS, "b": -ROWS}, "v.safetensors", {"given": "resid_post"}, "choose one with --tensor: a, b"),
    ({"up": ROWS}, "v.safetensors", {"given": "resid_post", "tensor": "uP"}, "no such tensor; did you mean up"),
    ({1: ROWS[0]}, "v.pt", {"given": "resid_post", "readout": "2"}, r"no direction there; it has resid_post\.1"),
    (ROWS, "v.pt", {"given": "resid_post", "readout": "half"}, "--readout half: give a layer"),
    (ROWS, "v.pt", {"given": "resid_post", "readout": "9"}, "layer 9 is out of range"),
]


@pytest.mark.parametrize(("content", "name", "options", "message"), BAD, ids=[message for *_, message in BAD])
def test_what_cannot_be_imported_is_one_line(
    model: LanguageModel, tmp_path: Path, content: Any, name: str, options: dict[str, Any], message: str
) -> None:
    path = _saved(content, tmp_path / name)
    with pytest.raises(InputError, match=message):
        _imported(model, path, **options)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".gguf", ".npy"])
def test_damaged_and_unknown_files_are_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    with pytest.raises(InputError, match=r"no such file|unknown kind"):
        read_directions(path)
    for content in (b"", b"GGUF\x03\0\0\0", b"PK\x03\x04 torn", os.urandom(200)):
        path.write_bytes(content)
        with pytest.raises(InputError):
            read_directions(path)


def test_the_command_writes_a_vector_file_that_a_suite_takes(
    command: Any, hidden_states: torch.Tensor, tiny_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _saved(hidden_states, tmp_path / "v.pt")
    asked = ("traits", "import", "v.pt", "--trait", "evil", "--model", tiny_directory)
    code, _, err = command(*asked)
    assert (code, err.count("\n")) == (2, 1)
    assert "--convention resid_post" in err
    code, out, err = command(*asked, "--convention", "hidden_states", "--readout", "0", "--positive", "wicked")
    assert code == 0
    assert "left out: hidden_states[3]" in err
    assert out == "wrote evil.safetensors: evil at 3 of 7 checkpoints, R = resid_post.0; unvalidated\n"
    vectors = load_vectors(tmp_path / "evil.safetensors")
    assert vectors.poles == ("wicked", "not evil")
    before = (tmp_path / "evil.safetensors").read_bytes()
    code, _, err = command(*asked, "--convention", "hidden_states")
    assert (code, (tmp_path / "evil.safetensors").read_bytes()) == (2, before)
    assert "not exist yet" in err
    code, _, err = command("traits", "import", "v.pt", "--trait", "a-b", "--convention", "resid_post")
    assert "--trait 'a-b': use letters, digits and underscores" in err
