"""Bugs caught here: a kind that fails on a real run, an answer that overwrites something else, JSON with NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nights import run_suite, write_suite


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, tiny_directory: Path, shared_cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("analyse")
    prompts = [f"Tell me {n} things about stones" for n in range(7)]
    steer = {"trait": "loudness", "alpha": [-0.2, 0, 0.2], "layers": "readout"}
    experiments: list[dict[str, Any]] = [
        {"name": f"shouting-{arm}", "prompts": [f"{arm}: {prompt}" for prompt in prompts]}
        for arm in ("natural", "instructed", "plain")
    ]
    experiments.append({"name": "dose", "prompts": prompts, "steer": steer})
    suite = write_suite(folder, tiny_directory, experiments=experiments, generation={"max_new_tokens": 30})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAITSCOPE_CACHE", str(shared_cache))
        return run_suite(suite, folder / "runs", batch_size=8, shard_size=40)


@pytest.mark.parametrize("kind", ["commitment-point", "drift", "instruction-confound", "dose-response"])
def test_a_kind_prints_keeps_and_draws(kind: str, run_dir: Path, command: Any) -> None:
    code, shown, said = command("analyse", run_dir, "--kind", kind)
    assert code == 0, said
    picture = run_dir / "analyses" / f"{kind}.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    kept = json.loads(picture.with_suffix(".json").read_text())
    assert kept["kind"] == kind
    assert kept["findings"]
    assert kept["captured"] == 42, "seven prompts at three arms and three doses"
    assert kept["title"] in shown
    code, printed, _ = command("analyse", run_dir, "--kind", kind, "--json")
    assert code == 0
    assert json.loads(printed)["findings"] == kept["findings"], "the same seed answers the same"


def test_what_is_no_answer_of_this_kind_is_not_overwritten(run_dir: Path, tmp_path: Path, command: Any) -> None:
    picture = tmp_path / "holiday.svg"
    picture.write_text("the sea")
    code, _, said = command("analyse", run_dir, "--kind", "drift", "--out", picture)
    assert code == 2
    assert "exists and is no answer to drift" in said
    assert picture.read_text() == "the sea"
    other = tmp_path / "drift.svg"
    assert command("analyse", run_dir, "--kind", "drift", "--out", other)[0] == 0
    assert "<svg" in other.read_text()
    assert command("analyse", run_dir, "--kind", "commitment-point", "--out", other)[0] == 2
    assert command("analyse", run_dir, "--kind", "drift", "--out", other)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "drifting"], "did you mean drift"),
        (["--kind", "drift", "--trait", "loud"], "did you mean loudness"),
        (["--kind", "drift", "--out", "picture.pdf"], "ends in .png or .svg"),
        (["--kind", "drift", "--layer", "1"], "--layer means nothing to drift"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, run_dir: Path, command: Any) -> None:
    code, _, said = command("analyse", run_dir, *arguments)
    assert code == 2
    assert message in said
    assert said.count("\n") == 1
