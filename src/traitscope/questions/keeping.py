"""Where an answer is kept: its values as JSON and a picture under one name."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from traitscope.atomic import write_atomically
from traitscope.captures.reading import open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer

PICTURE_SUFFIXES = (".png", ".svg")


def picture_path(run_dir: Path, kind: str, out: Path | None) -> Path:
    """Where the picture of an answer goes: ``out``, or ``analyses/<kind>.png`` in the run directory.

    Raises:
        InputError: ``out`` is neither PNG nor SVG, or a file of something else stands there or beside it.
    """
    path = out or run_dir / "analyses" / f"{kind}.png"
    if path.suffix not in PICTURE_SUFFIXES:
        raise InputError(f"--out {path}: name a file that ends in {' or '.join(PICTURE_SUFFIXES)}")
    standing = next((file for file in (path, path.with_suffix(".json")) if file.exists()), None)
    if standing and _kind_kept_at(path.with_suffix(".json")) != kind:
        raise InputError(f"--out {path}: {standing} exists and is no answer to {kind}; choose another name")
    return path


def captured_generations(run_dir: Path) -> int:
    """How many of a run's generations are captured, each once however many experiments share it.

    Raises:
        InputError: not a run directory.
    """
    return open_run(run_dir).generations.filter(pl.col("status") == "ok").collect().height


def keep_answer(answer: Answer, run_dir: Path, picture: Path, *, captured: int) -> Path:
    """Write the answer's values beside its picture; returns their path.

    Args:
        captured: ``captured_generations`` when the question was asked, so that a reader can see whether the run has
            gone on since.

    Raises:
        InputError: the directory cannot be written.
    """
    path = picture.with_suffix(".json")
    kept = {"run": str(run_dir), "captured": captured, **answer.described()}
    text = json.dumps(kept, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def _kind_kept_at(path: Path) -> str | None:
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return kept.get("kind") if isinstance(kept, dict) else None
