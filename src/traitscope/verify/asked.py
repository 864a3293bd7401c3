"""What a run was asked to capture: the reference that stored tables are held against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from traitscope.model.sampling import row_seed


@dataclass(frozen=True)
class Asked:
    """One generation of the plan.

    Attributes:
        label: experiment and prompt id of the first capture that asks for it, for people.
        response_ids: what was given instead of generated, or None.
        seed: of the row's random numbers; None when nothing is sampled.
        checkpoints: names of the states whose scores are kept, in the order of the forward pass.
        opened: names of the tensors that are kept of each open layer.
        steering: ``trait``, ``alpha``, ``layers`` and ``positions`` of what it is steered by, or None.
    """

    id: str
    label: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...] | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    checkpoints: tuple[str, ...]
    traits: tuple[str, ...]
    opened: Mapping[int, tuple[str, ...]]
    steering: Mapping[str, Any] | None

    @property
    def greedy(self) -> bool:
        return self.response_ids is None and self.temperature == 0

    @property
    def sampled(self) -> bool:
        return self.response_ids is None and self.temperature > 0

    @property
    def name(self) -> str:
        return f"generation {self.id} ({self.label})"


def read_asked(run_dir: Path, plan: Mapping[str, Any]) -> dict[str, Asked]:
    """Every generation of ``plan.json`` with its prompt and settings, by id, in the plan's order.

    Raises:
        OSError, pyarrow.ArrowInvalid: ``prompts.parquet`` cannot be read.
        KeyError: it lacks a generation of the plan.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row in pq.read_table(run_dir / "prompts.parquet").to_pylist():
        rows.setdefault(row["generation"], row)
    return {identity: _asked(rows[identity], kept, plan) for identity, kept in plan["generations"].items()}


def _asked(row: Mapping[str, Any], kept: Mapping[str, Any], plan: Mapping[str, Any]) -> Asked:
    prompt_ids = tuple(row["token_ids"])
    given = None if row["response_ids"] is None else tuple(row["response_ids"])
    sampled = given is None and row["temperature"] > 0
    label = f"{row['experiment']}/{row['prompt_id']}"
    if kept["steering"] is not None:
        label = f"{label}, α = {kept['steering']['alpha']:+g}"
    return Asked(
        id=row["generation"],
        label=f"{label}, sample {row['sample']}" if sampled else label,
        prompt_ids=prompt_ids,
        response_ids=given,
        max_new_tokens=row["max_new_tokens"],
        temperature=row["temperature"],
        top_p=row["top_p"],
        top_k=row["top_k"],
        seed=row_seed(row["seed"], prompt_ids, row["sample"]) if sampled else None,
        checkpoints=tuple(plan["checkpoints"][index] for index in kept["checkpoints"]),
        traits=tuple(kept["traits"]),
        opened={int(layer): tuple(names) for layer, names in (kept["internals"] or {"tensors": {}})["tensors"].items()},
        steering=kept["steering"],
    )
