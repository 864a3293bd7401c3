"""Where things lie in a run directory, and which shards count."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from traitscope.captures.schema import FORMAT_VERSION
from traitscope.errors import InputError, RunError

_PARTS_OF_A_PLAN = ("model", "devices", "dtype", "checkpoints", "traits", "generations", "shards", "estimate", "inputs")
_DONE = re.compile(r"(\d{4,})\.done\.json")


def shard_file(run_dir: Path, shard: int, table: str) -> Path:
    return run_dir / "shards" / f"{shard:04d}.{table}.parquet"


def internals_file(run_dir: Path, shard: int) -> Path:
    return run_dir / "shards" / f"{shard:04d}.internals.safetensors"


def done_file(run_dir: Path, shard: int) -> Path:
    return run_dir / "shards" / f"{shard:04d}.done.json"


def committed_shards(run_dir: Path) -> list[int]:
    """The shards that exist: only a ``.done.json`` says so."""
    names = (_DONE.fullmatch(path.name) for path in (run_dir / "shards").glob("*.done.json"))
    return sorted(int(name[1]) for name in names if name)


def read_done(run_dir: Path, shard: int) -> dict[str, Any]:
    """Sizes, checksums and row counts of a committed shard.

    Raises:
        RunError: the file that says so is damaged.
    """
    path = done_file(run_dir, shard)
    try:
        described = json.loads(path.read_text())
        described["files"].items()
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RunError(f"{path} is damaged; restore it, or delete it to have the shard run again") from None
    return described


def read_frozen_plan(run_dir: Path) -> dict[str, Any]:
    """A run's ``plan.json``.

    Raises:
        InputError: not a run directory, never frozen, or of another format version.
    """
    if not run_dir.is_dir():
        raise InputError(f"run {run_dir}: no such directory")
    try:
        plan = json.loads((run_dir / "plan.json").read_text())
    except FileNotFoundError:
        raise InputError(f"run {run_dir}: has no plan.json: it is no run, or was stopped before it began") from None
    except ValueError as error:
        raise InputError(f"run {run_dir}: plan.json is damaged: {error}") from None
    if not isinstance(plan, dict):
        raise InputError(f"run {run_dir}: plan.json is damaged: it describes no plan")
    if plan.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"run {run_dir}: written in format {plan.get('format_version')}, this version reads {FORMAT_VERSION}"
        )
    if absent := [name for name in _PARTS_OF_A_PLAN if name not in plan]:
        raise InputError(f"run {run_dir}: plan.json is damaged: it lacks {', '.join(absent)}")
    return plan


def read_retries(run_dir: Path) -> list[dict[str, Any]]:
    """Shards that were added by ``--retry-failed``, in order."""
    files = sorted(run_dir.glob("retry-*.json"))
    return [shard for path in files for shard in json.loads(path.read_text())["shards"]]


def read_sessions(run_dir: Path) -> list[dict[str, Any]]:
    """What each process that worked on the run spent."""
    try:
        return json.loads((run_dir / "run.json").read_text())["sessions"]
    except (OSError, ValueError, KeyError):
        return []
