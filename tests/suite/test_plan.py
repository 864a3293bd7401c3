"""Bugs caught here: equal work done twice, different work merged, a long prompt that stops the night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tiny_models import tiny_tokenizer
from traitscope.errors import InputError
from traitscope.suite.file import load_suite
from traitscope.suite.plan import Plan, make_plan


def _plan(tmp_path: Path, suite: dict[str, Any], context_length: int | None = None) -> Plan:
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "night", **suite}))
    return make_plan(
        load_suite(str(path)), tiny_tokenizer(), trait_name=lambda t: t, n_layers=4, context_length=context_length
    )


def _experiment(name: str, prompts: list[Any], **more: Any) -> dict[str, Any]:
    return {"name": name, "prompts": prompts, **more}


def test_equal_generations_are_shared_and_what_is_asked_is_united(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        {
            "experiments": [
                _experiment("a", ["Hi", "Ho"], traits=["x"], capture={"scores": {"layers": [0]}}),
                _experiment("b", ["Hi"], traits=["y"], capture={"scores": {"layers": "readout"}}),
            ]
        },
    )
    assert (len(plan.captures), len(plan.generations)) == (3, 2)
    shared = plan.captures[0].generation
    assert shared is plan.captures[2].generation
    assert shared.traits == {"x", "y"}
    assert shared.layers(4, {"x": 1, "y": 3}.__getitem__) == {0, 3}
    assert plan.traits == ("x", "y")


def test_the_smaller_of_two_sample_counts_takes_the_first_samples(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path,
        {
            "traits": ["x"],
            "generation": {"temperature": 1.0, "samples": 2},
            "experiments": [_experiment("a", ["Hi"]), _experiment("b", ["Hi"], generation={"samples": 4})],
        },
    )
    assert (len(plan.captures), len(plan.generations)) == (6, 4)
    assert len({generation.key.identity("model") for generation in plan.generations}) == 4


def test_settings_that_greedy_decoding_never_reads_do_not_divide(tmp_path: Path) -> None:
    experiments = [_experiment("a", ["Hi"]), _experiment("b", ["Hi"], generation={"seed": 5, "top_p": 0.5})]
    assert len(_plan(tmp_path, {"traits": ["x"], "experiments": experiments}).generations) == 1
    experiments[1]["generation"]["max_new_tokens"] = 7
    assert len(_plan(tmp_path, {"traits": ["x"], "experiments": experiments}).generations) == 2


def test_a_given_response_is_not_a_generation_of_its_prompt(tmp_path: Path) -> None:
    prompts = ["Hi", {"id": "given", "prompt": "Hi", "response": "ok"}]
    plan = _plan(tmp_path, {"traits": ["x"], "experiments": [_experiment("a", prompts)]})
    assert [g.key.response_ids is None for g in plan.generations] == [True, False]
    assert plan.generations[1].most_response_tokens == 2


def test_a_prompt_that_leaves_no_room_is_too_long_and_the_rest_runs(tmp_path: Path) -> None:
    suite = {
        "traits": ["x"],
        "generation": {"max_new_tokens": 10},
        "experiments": [_experiment("a", ["short", "long " * 20])],
    }
    n_short = _plan(tmp_path, suite).generations[0].n_prompt
    plan = _plan(tmp_path, suite, context_length=n_short + 10)
    assert [g.status for g in plan.generations] == ["planned", "too_long"]
    assert [g.status for g in _plan(tmp_path, suite, n_short + 9).generations] == ["too_long", "too_long"]


def test_a_longest_response_that_leaves_no_room_is_refused(tmp_path: Path) -> None:
    suite = {"traits": ["x"], "generation": {"max_new_tokens": 64}, "experiments": [_experiment("a", ["Hi"])]}
    with pytest.raises(InputError, match=r"experiment a: generation\.max_new_tokens: 64 leaves no room .* of 64"):
        _plan(tmp_path, suite, context_length=64)


def test_template_arguments_that_nobody_reads_are_refused(tmp_path: Path) -> None:
    suite = {"traits": ["x"], "template": {"enable_thinkng": True}, "experiments": [_experiment("a", ["Hi"])]}
    with pytest.raises(InputError, match=r"template\.enable_thinkng: the chat template does not read it"):
        _plan(tmp_path, suite)


def test_layers_out_of_range_and_expectations_of_other_traits_are_refused(tmp_path: Path) -> None:
    wrong = _experiment("a", ["Hi"], capture={"scores": {"layers": [9]}})
    with pytest.raises(InputError, match=r"experiment a: capture\.scores\.layers: layer 9 is out of range.*0 to 3"):
        _plan(tmp_path, {"traits": ["x"], "experiments": [wrong]})
    wrong = _experiment("a", ["Hi"], capture={"scores": {"layers": "3-1"}})
    with pytest.raises(InputError, match=r"layer range 3-1 runs backwards; write 1-3"):
        _plan(tmp_path, {"traits": ["x"], "experiments": [wrong]})
    wrong = _experiment("a", ["Hi"], expect={"z": "high"})
    with pytest.raises(InputError, match=r"suite\.yaml, experiment a: expect: z is not among the experiment's traits"):
        _plan(tmp_path, {"traits": ["x"], "experiments": [wrong]})
