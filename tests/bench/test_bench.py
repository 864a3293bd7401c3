"""Bugs caught here: files of a bench that disagree with its table, unequal lengths, bad input found after the load."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from traitscope.bench import session
from traitscope.bench.contenders import Grouping, batched_generate, cached, ours, uncached
from traitscope.bench.session import candidate_groupings
from traitscope.bench.workload import (
    Workload,
    load_workload,
    refuse_too_many_instances,
    share_of_prompts,
    short_workload,
    with_random_vectors,
    workload_of,
)
from traitscope.errors import InputError, RunError
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite
from traitscope.suite.prompts import read_prompts
from traitscope.traits.vectors import load_vectors

PROMPTS = ["hello you", "a", "what is this thing here?", "stones", "rain on the roof"]


@pytest.fixture
def suite(tmp_path: Path, tiny_directory: Path) -> Path:
    path = tmp_path / "suite.yaml"
    described = {
        "name": "small",
        "model": str(tiny_directory),
        "traits": ["sycophancy"],
        "generation": {"max_new_tokens": 6},
        "experiments": [
            {"name": "one", "prompts": PROMPTS},
            {"name": "two", "prompts": PROMPTS[:2], "traits": ["sycophancy", "cognitive_load"]},
        ],
    }
    path.write_text(yaml.safe_dump(described))
    return path


@pytest.fixture
def model(tiny_directory: Path) -> LanguageModel:
    return load_model(str(tiny_directory), device="cpu")


@pytest.fixture
def workload(suite: Path, model: LanguageModel, tmp_path: Path, tiny_cache: Path) -> Workload:
    loaded = with_random_vectors(load_suite(str(suite)), model, tmp_path, None)
    return workload_of(prepare(loaded, device="cpu"), model)


@pytest.mark.slow
def test_a_quick_bench_gives_a_table_a_json_and_a_picture_that_agree(
    command: Any, suite: Path, tmp_path: Path, tiny_cache: Path
) -> None:
    out = tmp_path / "out"
    code, shown, progress = command("bench", suite, "--quick", "--device", "cpu", "--instances", 2, "--out", out)
    assert code == 0, progress
    assert re.search(r"\[\d+/\d+\] round 2 of 2: \(f\).*about .* left", progress)
    (figures,), (picture,) = out.glob("*.json"), out.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    result = json.loads(figures.read_text())
    assert result["workload"]["captures"] == 5 + 2 * 2
    contenders = {contender["key"]: contender for contender in result["contenders"]}
    assert list(contenders) == ["a", "b", "c", "f", "e", "d", "program", "instances"]
    assert [key for key, c in contenders.items() if c["extrapolated"]] == ["a", "b", "c"]
    for key, contender in contenders.items():
        assert contender["name"] in shown
        seconds = contender["workload_seconds"]
        assert seconds["low"] <= seconds["median"] <= seconds["high"]
        assert (contender["captures_per_hour"] is None) == (key in "ef")
        if contender["captures_per_hour"] is not None:
            assert contender["captures_per_hour"] * seconds["median"] / 3600 == pytest.approx(9)
        for piece in contender["rounds"]:
            assert piece["tokens"] == 6 * (piece["units"] if key in "abcdef" else len(PROMPTS))
    assert contenders["a"]["parts"].keys() == {"import", "load", "compute"}
    for process in contenders["a"]["rounds"]:
        assert sum(process["parts"].values()) <= process["seconds"]
    assert [cost["batch"] for cost in result["capture_cost"]] == [5, 1]
    assert all(cost["steps"]["n"] == 6 for cost in result["capture_cost"])


def test_every_contender_generates_equal_lengths_though_the_model_ends_early(
    model: LanguageModel, workload: Workload
) -> None:
    n_whole, tasks = len(workload.tasks), workload.tasks
    every_token = frozenset(range(model.module.config.vocab_size))
    ending = replace(model, eos_token_ids=every_token)
    ending.module.generation_config.eos_token_id = sorted(every_token)
    grouping = Grouping(2, by_length=True)
    pieces = [
        uncached(ending, workload, tasks),
        cached(ending, workload, tasks),
        ours(ending, tasks, 2, bank=workload.bank, n_whole=n_whole),
        ours(ending, tasks, 2, bank=None, n_whole=n_whole),
        batched_generate(ending, tasks, grouping, n_whole=n_whole),
    ]
    assert [piece.tokens for piece in pieces] == [n_whole * 6] * 5
    assert ending.module.generation_config.eos_token_id == sorted(every_token)


def test_unequal_lengths_end_the_bench(
    model: LanguageModel, workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., torch.Tensor] = model.module.generate
    monkeypatch.setattr(model.module, "generate", lambda **given: real(**given)[:, :-1])
    with pytest.raises(RunError, match="generate generated 5 tokens instead of 6"):
        batched_generate(model, workload.tasks, Grouping(5, by_length=False), n_whole=5)


def test_random_vectors_are_unit_and_keep_the_shape_of_the_suite(workload: Workload) -> None:
    assert workload.n_captures == 9
    assert [sorted(capture.traits) for capture in workload.prepared.plan.captures[-2:]] == [["random0", "random1"]] * 2
    file = load_vectors(workload.prepared.references[0].path)
    assert torch.allclose(file.reader.norm(dim=-1), torch.ones(len(file.checkpoints)))


def test_a_number_of_traits_replaces_those_of_every_experiment(
    suite: Path, model: LanguageModel, tmp_path: Path
) -> None:
    loaded = with_random_vectors(load_suite(str(suite)), model, tmp_path, 16)
    assert [len(loaded.shared(experiment, "traits")) for experiment in loaded.suite.experiments] == [16, 16]


def test_built_in_workloads_are_what_they_say() -> None:
    reference, samples, short = (load_workload(name) for name in ("reference", "samples", "short"))

    def prompts(loaded: Any) -> list[str]:
        return [p.messages[-1]["content"] for e in loaded.suite.experiments for p in read_prompts(e, loaded.folder)]

    assert set(prompts(reference)) == set(prompts(load_suite("overnight")))
    assert (len(set(prompts(samples))), samples.suite.generation.samples) == (24, 10)
    assert len(set(prompts(short))) == 2400
    assert set(prompts(short_workload(24))) <= set(prompts(short))


def test_shares_of_prompts_make_up_the_whole(suite: Path) -> None:
    loaded = load_suite(str(suite))
    halves = [share_of_prompts(loaded, part, 2) for part in (0, 1)]
    for number, experiment in enumerate(loaded.suite.experiments):
        ids = [p.id for half in halves for p in read_prompts(half.suite.experiments[number], half.folder)]
        assert sorted(ids) == sorted(p.id for p in read_prompts(experiment, loaded.folder))


def test_groupings_that_make_equal_batches_are_tried_once(workload: Workload) -> None:
    assert len(candidate_groupings(workload.tasks, 32, other_widths=False)) == 1
    widths = [grouping.width for grouping in candidate_groupings(workload.tasks, 2, other_widths=True)]
    assert widths == [2, 2, 1, 4, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"generation": {"max_new_tokens": 9}}, "experiments one and two have different settings"),
        ({"prompts": [{"prompt": "a", "response": "b"}]}, "response: is given"),
        ({"prompts": ["x" * 300]}, "does not fit into the model's context"),
    ],
)
def test_work_that_cannot_be_equal_is_one_line_before_the_load(
    command: Any, suite: Path, changes: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a model was loaded before the input was checked")

    monkeypatch.setattr(session, "load_source", refuse)
    described = yaml.safe_load(suite.read_text())
    described["experiments"][1] |= changes
    suite.write_text(yaml.safe_dump(described))
    code, _, error = command("bench", suite, "--device", "cpu", "--out", tmp_path / "out")
    assert code == 2
    assert expected in error
    assert error.count("\n") == 1


def test_an_instance_without_a_prompt_is_refused(suite: Path) -> None:
    refuse_too_many_instances(load_suite(str(suite)), 5)
    with pytest.raises(InputError, match=r"--instances 6: .* has prompts for 5 at most"):
        refuse_too_many_instances(load_suite(str(suite)), 6)


def test_an_unknown_workload_is_one_line(command: Any, tmp_path: Path) -> None:
    code, _, error = command("bench", "referense", "--out", tmp_path / "out")
    assert (code, error.count("\n")) == (2, 1)
    assert "did you mean reference" in error
