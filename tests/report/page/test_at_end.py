"""The report that a run leaves behind, however it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nights import failing, write_suite
from traitscope.errors import RunError
from traitscope.report.page import build
from traitscope.run import workbench


def test_a_run_that_is_cut_short_leaves_a_report_of_what_is_there(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workbench, "commit_shard", failing(workbench.commit_shard, RunError("disk full"), after=2))
    suite = write_suite(tmp_path, tiny_directory)
    code, _, err = command("run", suite, "--out", tmp_path / "runs", "--batch-size", 2, "--shard-size", 2)
    assert code == 1
    (page,) = (tmp_path / "runs").glob("*/report.html")
    assert f"report: {page} (" in err
    text = page.read_text()
    assert "not made yet" in text
    assert f"traitscope run --resume {page.parent}" in text


def test_what_goes_wrong_with_the_report_does_not_make_the_run_fail(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_more: Any) -> str:
        raise ValueError("no page today")

    monkeypatch.setattr(build, "rendered_page", broken)
    suite = write_suite(tmp_path, tiny_directory, experiments=[{"name": "one", "prompts": ["sun"]}])
    code, _, err = command("run", suite, "--out", tmp_path / "runs")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert "the report could not be written: ValueError: no page today" in err
    assert f"try it again with: traitscope report {run_dir}" in err


def test_the_arms_of_a_suite_are_compared_unasked(
    command: Any, tmp_path: Path, tiny_directory: Path, tiny_cache: Path
) -> None:
    prompts = [f"sun {n}" for n in range(6)]
    arms = [
        {"name": f"calm-{arm}", "prompts": [f"{arm} {prompt}" for prompt in prompts]}
        for arm in ("natural", "instructed", "plain")
    ]
    code, _, _ = command("run", write_suite(tmp_path, tiny_directory, experiments=arms), "--out", tmp_path / "runs")
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert 'id="answer-instruction-confound"' in (run_dir / "report.html").read_text()


def test_report_refuses_what_is_no_run_or_asks_for_two_things(command: Any, tmp_path: Path) -> None:
    assert command("report", tmp_path)[0] == 2
    code, _, err = command("report", tmp_path, "--all", "--select", "x")
    assert (code, err) == (2, "error: report: give --all or --select, not both\n")
