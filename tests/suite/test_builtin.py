"""Bugs caught here: a suite that cannot be run by its name, arms that differ in more than what they compare, prompts
that the vectors were made from."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from tiny_models import tiny_tokenizer
from traitscope.errors import InputError
from traitscope.suite.file import BUILT_IN_SUITES, built_in_suite_folder, load_suite
from traitscope.suite.plan import Plan, make_plan
from traitscope.suite.prompts import read_prompts
from traitscope.traits.scenarios import library_folder, library_names

CONFOUND_INSTRUCTIONS = {"uncertainty": "You are uncertain. ", "refusal": "You must refuse. "}


def _planned(name: str, n_layers: int = 2) -> Plan:
    return make_plan(
        load_suite(name), tiny_tokenizer(), trait_name=lambda trait: trait, n_layers=n_layers, context_length=None
    )


def _prompts(name: str) -> dict[str, list[str]]:
    loaded = load_suite(name)
    return {
        experiment.name: [prompt.messages[-1]["content"] for prompt in read_prompts(experiment, loaded.folder)]
        for experiment in loaded.suite.experiments
    }


@pytest.mark.parametrize("name", BUILT_IN_SUITES)
def test_it_is_found_by_name_and_can_be_planned_on_a_model_of_two_layers(name: str) -> None:
    assert load_suite(name).suite.name == name
    plan = _planned(name)
    assert set(plan.traits) <= set(library_names())
    assert len(plan.captures) >= len(plan.generations) > 0


@pytest.mark.parametrize(("name", "n_traits", "n_tokens", "n_open"), [("medium", 8, 80, 3), ("full", 16, 100, 5)])
def test_each_trait_is_asked_in_both_directions(name: str, n_traits: int, n_tokens: int, n_open: int) -> None:
    suite, prompts = load_suite(name).suite, _prompts(name)
    assert len(suite.traits) == n_traits
    assert suite.generation.max_new_tokens == n_tokens
    for trait in suite.traits:
        assert len(prompts[f"{trait}-high"]) >= 5
        assert len(prompts[f"{trait}-low"]) >= 5
        assert not set(prompts[f"{trait}-high"]) & set(prompts[f"{trait}-low"])
    for experiment in suite.experiments:
        trait, _, side = experiment.name.rpartition("-")
        assert experiment.expect in ({}, {trait: side})
    plan = _planned(name, n_layers=30)
    (opened,) = {tuple(sorted(c.resolved_layers(30, lambda _: 14))) for c in plan.captures if c.kind == "internals"}
    assert len(opened) == n_open


@pytest.mark.parametrize("name", ["medium", "full"])
def test_prompts_that_stand_in_two_experiments_are_generated_once(name: str) -> None:
    scored = [(c.experiment, c.generation.key) for c in _planned(name).captures if c.kind == "scores"]
    shared = [key for key, n in Counter(key for _, key in scored).items() if n > 1]
    assert len(shared) >= 3


def test_full_asks_all_that_medium_asks() -> None:
    medium, full = _prompts("medium"), _prompts("full")
    assert {experiment: full[experiment] for experiment in medium} == medium


@pytest.mark.parametrize("trait", CONFOUND_INSTRUCTIONS)
def test_the_arms_of_confound_differ_only_in_what_they_compare(trait: str) -> None:
    prompts = _prompts("confound")
    natural, instructed, plain = (prompts[f"{trait}-{arm}"] for arm in ("natural", "instructed", "plain"))
    assert len(natural) >= 24
    assert len(set(natural)) == len(natural)
    assert len(set(plain)) == len(plain) >= 24
    assert instructed == [CONFOUND_INSTRUCTIONS[trait] + prompt for prompt in plain]
    assert not set(natural) & set(plain)
    lengths = [median(len(prompt) for prompt in arm) for arm in (natural, plain)]
    assert abs(lengths[0] - lengths[1]) <= 0.05 * lengths[1]


@pytest.mark.parametrize("name", ["medium", "full", "confound"])
def test_no_prompt_is_one_that_vectors_are_made_from(name: str) -> None:
    def normal(text: str) -> str:
        return re.sub(r"\W+", " ", text.lower()).strip()

    library = {normal(text) for path in library_folder().glob("*.yaml") for text in _texts(yaml.safe_load(path.open()))}
    assert not [prompt for arm in _prompts(name).values() for prompt in arm if normal(prompt) in library]


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for part in inner for text in _texts(part)]


@pytest.mark.parametrize("name", BUILT_IN_SUITES)
def test_init_writes_any_of_them(command: Any, tmp_path: Path, name: str) -> None:
    assert command("init", tmp_path / "mine", "--suite", name)[0] == 0
    assert load_suite(str(tmp_path / "mine")).resolved() == load_suite(name).resolved()
    written = {path.relative_to(tmp_path / "mine") for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    folder = built_in_suite_folder(name)
    assert written == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def test_help_and_errors_name_them_all(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("run", "plan", "init"):
        shown = command(name, "--help")[1]
        assert all(suite in shown for suite in BUILT_IN_SUITES), name
    with pytest.raises(InputError, match="no built-in suite; did you mean medium"):
        built_in_suite_folder("medum")
    code, _, err = command("init", tmp_path / "x", "--suite", "zzz")
    assert code == 2
    assert all(suite in err for suite in BUILT_IN_SUITES)


@pytest.mark.slow
def test_full_runs_by_name_on_a_random_model(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    code, out, _ = command("run", "full", "--model", tiny_directory, "--out", tmp_path, "--json")
    summary = json.loads(out)
    assert (code, set(summary["counts"])) == (0, {"ok"})
    assert len(summary["expectations"]) == 31
    assert summary["old_procedure"]["model_loads"] == 16 * 192 + 4
