"""What a run comes down to: one number per generation and trait, and whether it worked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from traitscope.captures.expectations import scored_expectations
from traitscope.captures.files import committed_shards, read_frozen_plan, read_retries, read_sessions
from traitscope.captures.old_procedure import procedures_of
from traitscope.captures.prompts import prompt_numbers
from traitscope.captures.reading import Run, open_run
from traitscope.captures.responses import mean_z


def summary_of(run: Run) -> list[dict[str, Any]]:
    """One entry per capture, in the suite's order: experiment, prompt, status, response, mean z per trait.

    Entries with one ``prompt_number`` are of one prompt, the unit of statistics, see ``prompt_numbers``.
    """
    scores = {row["generation"]: row for row in mean_z(run).to_dicts()}
    outcomes = {row["generation"]: row for row in run.generations.collect().to_dicts()}
    asked, numbers = run.captures.collect().to_dicts(), prompt_numbers(run)
    messages = {
        (row["experiment"], row["prompt_id"]): row["messages"]
        for row in run.prompts.select("experiment", "prompt_id", "messages").collect().to_dicts()
    }
    entries = []
    for capture in asked:
        outcome = outcomes.get(capture["generation"], {"status": "missing", "error": None, "response": None})
        means = scores.get(capture["generation"], {})
        entries.append(
            {
                "kind": capture["kind"],
                "layers": capture["layers"] if capture["kind"] == "internals" else None,
                "experiment": capture["experiment"],
                "prompt_id": capture["prompt_id"],
                "prompt_number": numbers[capture["generation"]],
                "sample": capture["sample"],
                "steer_trait": capture["steer_trait"],
                "alpha": capture["alpha"],
                "generation": capture["generation"],
                "prompt": messages[capture["experiment"], capture["prompt_id"]][-1]["content"],
                "status": outcome["status"],
                "error": outcome["error"],
                "response": outcome["response"],
                "mean_z": {trait: means.get(trait) for trait in capture["traits"]},
            }
        )
    return entries


def _captured_bytes(run_dir: Path) -> int:
    """What a run takes on disk, without what was made of it afterwards (the report and answers)."""
    files = (path for path in run_dir.rglob("*") if path.is_file() and path.parent.name != "analyses")
    return sum(path.stat().st_size for path in files if path.name != "report.html")


def cost_of(run_dir: Path) -> dict[str, Any]:
    """What the run cost over all its sessions, beside what was estimated. Seconds and bytes."""
    plan, sessions = read_frozen_plan(run_dir), read_sessions(run_dir)
    seconds: dict[str, float] = {}
    for session in sessions:
        for kind, spent in session["seconds"].items():
            seconds[kind] = round(seconds.get(kind, 0.0) + spent, 3)
    return {
        "sessions": len(sessions),
        "model_loads": sum(session["model_loads"] for session in sessions),
        "seconds": seconds,
        "workers": max((len(session["devices"]) for session in sessions), default=1),
        "generating_wall_seconds": sum(session["generating_wall_seconds"] for session in sessions),
        "peak_memory_bytes": max(map(_peak_memory_bytes, sessions), default=None),
        "disk_bytes": _captured_bytes(run_dir),
        "utilisation": next((s["utilisation"] for s in reversed(sessions) if s["utilisation"]), None),
        "estimated_seconds": plan["estimate"]["seconds"],
        "estimated_memory_bytes": plan["estimate"]["memory_bytes"],
        "estimated_disk_bytes": plan["estimate"]["disk_bytes"],
        "shards": len(plan["shards"]) + len(read_retries(run_dir)),
        "committed_shards": len(committed_shards(run_dir)),
    }


def _peak_memory_bytes(session: Mapping[str, Any]) -> int:
    """Of the CUDA device where the session computed on one: that is what the plan estimates; else of the process."""
    return session["peak_device_memory_bytes"] or session["peak_memory_bytes"]


def run_summary(run_dir: Path) -> dict[str, Any]:
    """Everything that the summary shows, as plain values."""
    run = open_run(run_dir)
    captures = summary_of(run)
    return {
        "run": str(run_dir),
        "counts": dict(Counter(capture["status"] for capture in captures)),
        "traits": {
            trait.trait: {"poles": list(trait.poles), "readout": trait.readout, "verdict": trait.verdict}
            for trait in run.traits.values()
        },
        "captures": captures,
        "expectations": [
            expected.described() for expected in scored_expectations(run, read_frozen_plan(run_dir)["suite"])
        ],
        "verify": next((s["verify"] for s in reversed(read_sessions(run_dir)) if s["verify"]), None),
        "cost": cost_of(run_dir),
        "old_procedure": procedures_of(run, run_dir),
    }


def went_well(summary: Mapping[str, Any]) -> bool:
    """Whether every capture that was asked for is there, and what was verified of them is right."""
    verdict = summary["verify"]
    return set(summary["counts"]) <= {"ok"} and (verdict is None or verdict["passed"])
