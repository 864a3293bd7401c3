"""Bugs caught here: a look at the sealed test split, a trait without pairs that stops the others, samples counted as
prompts, attention to the first token reported, a reason that is not said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nights import run_suite, write_suite
from tiny_models import SCENARIOS
from traitscope.traits import pooling
from traitscope.traits.scenarios import library_scenarios
from traitscope.traits.validation import own_text

TRAITS = ("abstract_concrete", "local_global")
N_PROMPTS = 7


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("read")
    prompts = [f"Tell me {n} things about stones" for n in range(N_PROMPTS)]
    sampled = {"temperature": 1.0, "samples": 2}
    opened = {"internals": {"layers": [0, -1], "keep": ["pattern"]}}
    experiments: list[dict[str, Any]] = [
        {"name": "opened", "prompts": prompts, "capture": opened},
        {"name": "sampled", "prompts": prompts[:3], "capture": opened, "generation": sampled},
        {"name": "closed", "prompts": ["stone"]},
    ]
    traits = [*TRAITS, str(SCENARIOS)]
    suite = write_suite(
        folder, tiny_directory, experiments=experiments, generation={"max_new_tokens": 30}, traits=traits
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        return run_suite(suite, folder / "runs", batch_size=8, shard_size=40)


@pytest.fixture
def ask(run_dir: Path, command: Any, tiny_cache: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def asked(*arguments: str) -> dict[str, Any]:
        code, printed, said = command("analyse", run_dir, *arguments, "--json", "--out", tmp_path / "picture.png")
        assert code == 0, said
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return json.loads(printed)

    return asked


def test_emergence_reads_dev_pairs_and_own_text_and_never_the_test_split(
    ask: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    pool, begin = pooling.pool_pairs, own_text.after_prefills

    def pooled(model: Any, pairs: Any, *rest: Any, **more: Any) -> Any:
        read.extend(pair.topic for pair in pairs)
        return pool(model, pairs, *rest, **more)

    def begun(model: Any, pairs: Any, *rest: Any) -> Any:
        read.extend(pair.topic for pair in pairs)
        return begin(model, pairs, *rest)

    monkeypatch.setattr(pooling, "pool_pairs", pooled)
    monkeypatch.setattr(own_text, "after_prefills", begun)
    answer = ask("--kind", "emergence", "--trait", TRAITS[0])
    splits = library_scenarios(TRAITS[0]).splits
    assert {pair.topic for pair in splits.dev} <= set(read)
    assert not {pair.topic for pair in splits.test} & set(read)
    crossed, own = answer["values"]["evidence"]
    assert (crossed["topics"], own["topics"]) == (6, 24)
    assert len(own["auroc"]["value"]) == len(own["checkpoints"])
    assert "first layer above chance would say nothing" in answer["findings"][0]


def test_superposition_reads_what_pairs_there_are_and_names_the_trait_that_has_none(ask: Any) -> None:
    answer = ask("--kind", "superposition")
    assert any("loudness: its scenario set is not in the library" in finding for finding in answer["findings"])
    cross = answer["values"]["cross_reading"]
    assert [row[2] for row in cross["auroc"]] == [None] * 3, "loudness has a reader, but no pairs"
    assert all(value is not None for value in cross["auroc"][2][:2])
    assert len(answer["values"]["readers"]["overlaps"]) >= 3


def test_heads_of_every_open_layer_are_one_family_over_prompts(ask: Any) -> None:
    answer = ask("--kind", "attention-decay")
    heads = answer["values"]["heads"]
    assert len(heads) == 2 * len({head["head"] for head in heads})
    assert {head["n_prompts"] for head in heads} == {N_PROMPTS}, "samples are no further prompts"
    assert len(ask("--kind", "attention-decay", "--layer", "-1", "--head", "0")["values"]["heads"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "emergence", "--trait", "loudness"], "its scenario set is not in the library"),
        (["--kind", "superposition", "--trait", TRAITS[0]], "choose at least two"),
        (["--kind", "attention-decay", "--experiment", "closed"], "keep: [pattern]"),
        (["--kind", "attention-decay", "--layer", "1"], "was not opened in this run; open: [0, "),
        (["--kind", "attention-decay", "--head", "99"], "has heads 0 to"),
        (["--kind", "attention-decay", "--position", "0"], "attention to the first token is left out"),
        (
            ["--kind", "attention-decay", "--token", "zebra"],
            "no response has 8 content tokens behind the token 'zebra'",
        ),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    arguments: list[str], message: str, run_dir: Path, tmp_path: Path, command: Any
) -> None:
    code, _, said = command("analyse", run_dir, *arguments, "--out", tmp_path / "picture.png")
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
