"""Bugs caught here: a response that writes to the terminal, a line for every look, a watch that ends with another exit
code than its run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from traitscope.captures.files import committed_shards, done_file, read_sessions
from traitscope.report.status import print_changes, print_status, show_live
from traitscope.run import watching
from traitscope.run.commit import write_json
from traitscope.run.status import run_status

NASTY = "hello\x1b]0;taken over\x07\x1b[2J\r\n\u202egnp.exe [bold]not markup[/bold] \x9b31m"


def _with(status: Mapping[str, Any], **values: Any) -> dict[str, Any]:
    return {**status, "silent_seconds": 0.0, **values}


@pytest.mark.parametrize(
    "show",
    [
        print_status,
        lambda console, status: print_changes(console, [status]),
        lambda console, status: show_live(console, [status]),
    ],
    ids=["once", "lines", "live"],
)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_nothing_of_a_response_or_an_error_reaches_the_terminal_but_its_letters(
    finished: Path, show: Callable[[Console, Mapping[str, Any]], Any], is_terminal: bool
) -> None:
    status = _with(
        run_status(finished),
        state="stopped",
        last_responses=[{"at": f"a/{NASTY}", "response": NASTY}],
        problems=[{"at": NASTY, "status": "failed", "error": NASTY}],
    )
    file = io.StringIO()
    show(Console(file=file, force_terminal=is_terminal, width=200), status)
    shown = file.getvalue()
    assert not [bad for bad in ("\x1b]", "\x07", "\x1b[2J", "\u202e", "\x9b") if bad in shown]
    if "hello" in shown:  # a line for every change shows neither responses nor errors
        assert "[bold]not markup[/bold]" in shown


def test_a_line_for_every_change_and_none_for_a_look(finished: Path) -> None:
    status = run_status(finished)
    half = _with(status, state="running", stage="generating", work={"done": 70, "total": 144}, eta_from="the plan")
    later = _with(half, work={"done": 71, "total": 144}, tokens_per_second=3.0)
    looks = [half, half, later, _with(half, work={"done": 80, "total": 144}, eta_seconds=61.0), _with(status)]
    file = io.StringIO()
    last = print_changes(Console(file=file, width=80), looks)
    lines = file.getvalue().splitlines()
    assert len([line for line in lines if " running, " in line]) == 2
    assert "about 61 s of generation left (reckoned from the plan)" in lines[1]
    assert "complete" in lines[2]
    assert lines[3].startswith("verified 2 of ")
    assert last["state"] == "complete"


def test_a_run_that_is_silent_for_long_is_called_so(finished: Path) -> None:
    file = io.StringIO()
    running = _with(run_status(finished), state="running", stage="generating", silent_seconds=150.0)
    show_live(Console(file=file, width=120), [running])
    assert "running, nothing new for over 2 min" in file.getvalue()


def test_the_watch_of_a_run_ends_with_its_exit_code(command: Any, run_dir: Path) -> None:
    code, out, err = command("status", run_dir, "--watch", "--every", "0.1")
    assert (code, err) == (0, "")
    assert "complete, 6 of 6 shards" in out
    sessions = read_sessions(run_dir)
    sessions[-1]["verify"] |= {"passed": False, "problems": ["score at resid_post.1: wrong"]}
    write_json(run_dir / "run.json", {"sessions": sessions})
    code, out, _ = command("status", run_dir, "--watch")
    assert (code, "score at resid_post.1: wrong" in out) == (1, True)
    assert command("status", run_dir)[0] == 1


def test_leaving_a_watch_says_nothing_of_the_run(command: Any, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done_file(run_dir, committed_shards(run_dir)[-1]).unlink()

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    code, out, err = command("status", run_dir, "--watch")
    assert (code, err) == (0, "")
    assert "stopped" in out


def test_json_is_said_once(command: Any, run_dir: Path) -> None:
    code, out, err = command("status", run_dir, "--watch", "--json")
    assert (code, out, err.count("\n")) == (2, "", 1)
    status = json.loads(command("status", run_dir, "--json")[1])
    kept = {"run", "state", "shards", "committed_shards", "counts", "problems", "sessions", "estimated_seconds"}
    assert kept <= status.keys()
