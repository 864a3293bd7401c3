"""Where a run stands, from its directory alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from traitscope.captures.files import committed_shards, read_frozen_plan, read_retries, read_sessions
from traitscope.captures.reading import open_run
from traitscope.run.lock import is_locked


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
