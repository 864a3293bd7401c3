"""The figures of a run that a tracker is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from traitscope.run.frozen import FrozenRun
from traitscope.run.tables import Outcome
from traitscope.traits.vectors import TraitVectors


def tracked_config(frozen: FrozenRun) -> dict[str, Any]:
    """The resolved suite, and what it ran on."""
    return {
        "suite": frozen.suite,
        "model": frozen.source.name,
        "fingerprint": frozen.fingerprint,
        "devices": list(frozen.devices),
        "dtype": frozen.dtype,
        "traits": {
            vectors.trait: {"readout": vectors.readout_name, "verdict": vectors.origin.verdict}
            for vectors in frozen.vectors
        },
        "run": str(frozen.run_dir),
        "generations": len(frozen.tasks),
        "shards": len(frozen.shards),
    }


def shard_metrics(
    statuses: Mapping[str, str], figures: Mapping[str, float], held: Mapping[str, int]
) -> dict[str, float]:
    """Figures of a shard that was committed.

    Args:
        statuses: of all generations committed so far, by id.
        figures: of this shard alone, from ``shard_figures``.
        held: memory in bytes, by name.
    """
    counts = Counter(statuses.values())
    metrics: dict[str, float] = {f"generations/{kind}": counts[kind] for kind in ("ok", "failed", "too_long")}
    return {**metrics, **figures, **{f"memory/{name}": value for name, value in held.items()}}


def shard_figures(frozen: FrozenRun, outcomes: Sequence[Outcome]) -> dict[str, float]:
    """``tokens_per_second`` and ``mean_z/<trait>`` of a shard with these outcomes."""
    figures: dict[str, float] = {}
    seconds = sum(outcome.seconds or 0.0 for outcome in outcomes)
    if seconds:
        figures["tokens_per_second"] = sum(len(o.captured.logprobs) for o in outcomes if o.captured) / seconds
    unsteered = [outcome for outcome in outcomes if frozen.tasks[outcome.generation].dose is None]
    for index, vectors in enumerate(frozen.vectors):
        means = [z for outcome in unsteered if (z := _mean_z(outcome, index, vectors)) is not None]
        if means:
            figures[f"mean_z/{vectors.trait}"] = float(np.mean(means))
    return figures


def _mean_z(outcome: Outcome, index: int, vectors: TraitVectors) -> float | None:
    """Mean z at R over one response's content tokens; None where the trait was not asked or there is no content."""
    if outcome.captured is None or vectors.trait not in outcome.traits:
        return None
    content = outcome.captured.tokens.content()
    if not content.any():
        return None
    scores = outcome.captured.trace.scores[vectors.readout, content, index]
    mean = float(vectors.calibration.mean["response_token"][vectors.readout])
    std = float(vectors.calibration.std["response_token"][vectors.readout])
    return float((scores.mean() - mean) / std)


def summary_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the whole run, from ``run_summary``: each unsteered generation counts once."""
    counts, seconds = summary["counts"], summary["cost"]["seconds"]
    metrics: dict[str, float] = {
        f"summary/captures_{kind}": counts.get(kind, 0) for kind in ("ok", "failed", "too_long", "missing")
    }
    metrics |= {f"summary/{kind}_seconds": spent for kind, spent in seconds.items()}
    unsteered = {c["generation"]: c["mean_z"] for c in summary["captures"] if c["alpha"] is None}
    for trait in summary["traits"]:
        means = [z for mean_z in unsteered.values() if (z := mean_z.get(trait)) is not None]
        if means:
            metrics[f"summary/mean_z/{trait}"] = float(np.mean(means))
    if (verdict := summary["verify"]) is not None:
        metrics |= {"verify/passed": int(verdict["passed"]), "verify/generations": verdict["verified"]}
    return metrics
