"""Where a run stands, from its directory alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from traitscope.captures.files import committed_shards, read_frozen_plan, read_retries, read_sessions
from traitscope.captures.reading import open_run
from traitscope.run.lock import is_locked
from traitscope.run.progress import human_seconds


def run_status(run_dir: Path) -> dict[str, Any]:
    """Counts, failures and whether a process is at work; nothing of the model is loaded.

    Raises:
        InputError: not a run directory.
    """
    plan = read_frozen_plan(run_dir)
    shards = [*plan["shards"], *read_retries(run_dir)]
    committed = committed_shards(run_dir)
    run = open_run(run_dir)
    generations = run.generations.select("generation", "status", "error").collect().to_dicts()
    counts = Counter(row["status"] for row in generations)
    counts["missing"] = len(plan["generations"]) - len(generations)
    places = {row["generation"]: f"{row['experiment']}/{row['prompt_id']}" for row in run.captures.collect().to_dicts()}
    return {
        "run": str(run_dir),
        "state": _state(run_dir, len(committed), len(shards)),
        "shards": len(shards),
        "committed_shards": len(committed),
        "counts": dict(counts),
        "problems": [
            {"at": places[row["generation"]], "status": row["status"], "error": row["error"]}
            for row in generations
            if row["status"] != "ok"
        ],
        "sessions": read_sessions(run_dir),
        "estimated_seconds": plan["estimate"]["seconds"],
    }


def _state(run_dir: Path, n_committed: int, n_shards: int) -> str:
    if n_committed == n_shards:
        return "complete"
    return "running" if is_locked(run_dir) else "stopped"


def print_status(console: Console, status: dict[str, Any]) -> None:
    """A few lines for a person."""
    counts = status["counts"]
    lines = [
        f"{status['run']}: {status['state']}, {status['committed_shards']} of {status['shards']} shards committed",
        f"generations: {counts.get('ok', 0)} captured, {counts.get('failed', 0)} failed, "
        f"{counts.get('too_long', 0)} too long, {counts['missing']} to go",
    ]
    generating = sum(session["seconds"].get("generating", 0.0) for session in status["sessions"])
    if status["sessions"]:
        lines.append(
            f"{len(status['sessions'])} sessions, {human_seconds(generating)} of generation "
            f"(at most {human_seconds(status['estimated_seconds'])} were estimated)"
        )
    lines += [f"{problem['status']}: {problem['at']}: {problem['error']}" for problem in status["problems"]]
    if status["state"] == "stopped":
        lines.append(f"go on with: traitscope run --resume {status['run']}")
    elif counts.get("failed"):
        lines.append(f"try the failed ones again with: traitscope run --resume {status['run']} --retry-failed")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
