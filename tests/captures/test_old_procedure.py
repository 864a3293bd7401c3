"""Bugs caught here: open layers counted as generations of their own, a longest length taken for the real one, failures
counted as work."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from nights import run_suite, write_suite
from traitscope.captures.old_procedure import AskedText, ProcedureCost, old_procedure
from traitscope.captures.reading import open_run
from traitscope.captures.summaries import run_summary
from traitscope.run.describe_plan import describe_plan
from traitscope.run.prepare import prepare
from traitscope.suite.file import load_suite


def test_the_old_procedure_by_hand() -> None:
    # Three tokens after a prompt of ten: passes over 10, 11 and 12 tokens, for each of two traits.
    # A given response of five tokens after two: one pass over 7 tokens.
    asked = [AskedText(2, 10, 3), AskedText(1, 2, 5, given=True), AskedText(1, 4, 0)]
    assert old_procedure(asked) == ProcedureCost(model_loads=4, generations=3, token_forwards=2 * (10 + 11 + 12) + 7)


def test_a_run_is_counted_with_the_lengths_that_it_generated(
    tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    experiments = [
        {"name": "both", "prompts": ["sun", "rain"], "capture": {"scores": {}, "internals": {"layers": 0}}},
        {"name": "again", "prompts": ["sun", "far too long " * 30]},
        {"name": "sampled", "prompts": ["moss"], "generation": {"temperature": 1.0, "samples": 2}},
        {"name": "given", "prompts": [{"prompt": "Hi", "response": "OK!"}]},
    ]
    suite = write_suite(tmp_path, tiny_directory, experiments=experiments)
    run_dir = run_suite(suite, tmp_path / "runs")
    run = open_run(run_dir)
    lengths = {
        row["generation"]: (row["prompt_tokens"], row["response_tokens"])
        for row in run.generations.filter(pl.col("status") == "ok").collect().to_dicts()
    }
    by_hand = 0
    for row in run.prompts.collect().to_dicts():  # one row per experiment and prompt or sample: sun stands twice
        n_prompt, n_response = lengths.get(row["generation"], (0, 0))
        given = row["experiment"] == "given"
        by_hand += n_prompt + n_response if given else sum(range(n_prompt, n_prompt + n_response))
    found = run_summary(run_dir)["old_procedure"]
    here = found.pop("here")
    assert found == {"model_loads": 6, "generations": 5, "token_forwards": by_hand}
    assert (here["model_loads"], here["generations"]) == (1, 4)
    assert 0 < here["token_forwards"] < by_hand
    planned = describe_plan(prepare(load_suite(str(suite)), device="cpu"), None, tmp_path)["old_procedure"]
    assert (planned["model_loads"], planned["generations"]) == (6, 5)
    assert planned["token_forwards"] >= by_hand
