"""``explain``: who wrote a trait at one token of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from traitscope.attribution.attribute import attribute
from traitscope.attribution.neutral import neutral_means
from traitscope.attribution.tree import ScoreTree, score_tree
from traitscope.captures.integrity import check_shards
from traitscope.captures.reading import Run, capture_label, open_run
from traitscope.errors import InputError, near_names
from traitscope.model.loading import LanguageModel
from traitscope.run.frozen import FrozenRun, read_frozen
from traitscope.run.reload import model_of_run
from traitscope.run.steering import steering_of
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.tokens import content_mask
from traitscope.traits.vectors import TraitVectors


@dataclass(frozen=True)
class Explanation:
    """One token's score at a trait's readout R, taken apart.

    Attributes:
        label: experiment and prompt id, as it was asked for or of the first capture of the generation.
        token, before, after: the token and the text around it.
        score: state at R · reader, of the replay; ``z`` is ``(score - neutral_mean) / neutral_std``.
        stored_z: as the run stored it, from a batched pass and rounded.
        tree: its terms sum to the score, and their z to its z.
    """

    run: str
    generation: str
    label: str
    trait: str
    poles: tuple[str, str]
    verdict: str
    readout: str
    position: int
    token: str
    phase: str
    before: str
    after: str
    score: float
    neutral_mean: float
    neutral_std: float
    z: float
    stored_z: float
    tree: ScoreTree

    def described(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def explain(
    run_dir: str | Path,
    generation: str,
    trait: str,
    position: int | None = None,
    *,
    model: LanguageModel | None = None,
    most: int = 5,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Explanation:
    """Take the score of one token apart: blocks, heads with the tokens that they read, neurons.

    The generation's stored token ids are replayed up to the readout; the model's neutral replies are opened once, when
    a model is explained for the first time, and kept in the user's cache.

    Args:
        generation: its id, the beginning of it, or ``experiment/prompt_id``.
        position: of the token; negative ones count from the end. None takes the response's content token with the
            largest z, up or down.
        model: the run's model, if it is in memory already.
        most: how many blocks are named; in each of them two fewer heads or neurons, and as many source tokens.
        on_progress: told how many neutral replies were opened, and of how many.

    Raises:
        InputError: no such run, generation, trait or position; the model is not the run's.
        RunError: a file of the run is damaged.
    """
    run_dir = Path(run_dir)
    run, frozen = sound_run(run_dir)
    asked = _AskedToken.find(run, generation, trait, position)
    vectors = next(vectors for vectors in frozen.vectors if vectors.trait == trait)
    _refuse_without_spread(vectors)
    model = model or model_of_run(run_dir)
    neutral = neutral_means(model, base_template=vectors.origin.base_template or BASE_TEMPLATE, on_progress=on_progress)
    tokens = asked.tokens["token"].to_list()
    task = frozen.tasks[asked.generation]
    attribution = attribute(
        model,
        asked.tokens["token_id"].to_list(),
        [vectors],
        [asked.position],
        neutral,
        steering=steering_of(task.dose, frozen.vectors),
        n_prompt=task.n_prompt,
    )
    mean, std = (
        float(statistic["response_token"][vectors.readout])
        for statistic in (vectors.calibration.mean, vectors.calibration.std)
    )
    score = float(attribution.score[0, 0])
    return Explanation(
        run=str(run_dir),
        generation=asked.generation,
        label=asked.label,
        trait=trait,
        poles=vectors.poles,
        verdict=vectors.origin.verdict,
        readout=vectors.readout_name,
        position=asked.position,
        token=tokens[asked.position],
        phase=asked.tokens["phase"][asked.position],
        before="".join(tokens[: asked.position]),
        after="".join(tokens[asked.position + 1 :]),
        score=score,
        neutral_mean=mean,
        neutral_std=std,
        z=(score - mean) / std,
        stored_z=asked.stored_z,
        tree=score_tree(attribution, vectors, asked.position, tokens, most=most),
    )


@dataclass(frozen=True)
class _AskedToken:
    """A token of a run; ``tokens`` are all those of its generation."""

    generation: str
    label: str
    position: int
    stored_z: float
    tokens: pl.DataFrame

    @classmethod
    def find(cls, run: Run, generation: str, trait: str, position: int | None) -> _AskedToken:
        if trait not in run.traits:
            raise InputError(f"--trait {trait}: not in this run; {near_names(trait, run.traits)}")
        identity, label = find_generation(run, generation)
        tokens = run.tokens.filter(pl.col("generation") == identity).sort("position").collect()
        if tokens.is_empty():
            raise InputError(f"--generation {generation}: {why_not_captured(run, identity)}")
        scored = run.score(trait).filter(pl.col("generation") == identity).sort("position")
        if scored.is_empty():
            raise InputError(f"--trait {trait}: was not asked of generation {identity} ({label})")
        z = scored["z"].to_numpy()
        at = _largest(scored) if position is None else position + (len(z) if position < 0 else 0)
        if not 0 <= at < len(z):
            raise InputError(f"--position {position}: the generation has positions 0 to {len(z) - 1}")
        return cls(identity, label, at, float(z[at]), tokens)


def _largest(scored: pl.DataFrame) -> int:
    """The position of the response's content token with the largest z."""
    content = content_mask(*(scored[name].to_list() for name in ("position", "phase", "role", "special")))
    if not content.any():
        raise InputError("--top: the response has no content tokens; give a --position")
    return int(np.argmax(np.where(content, np.abs(scored["z"].to_numpy()), -1.0)))


def sound_run(run_dir: Path) -> tuple[Run, FrozenRun]:
    """A run whose inputs are as they were and whose committed files have their sizes, and these inputs.

    Raises:
        InputError: not a run directory, or an input was changed.
        RunError: a committed file is missing or changed.
    """
    run = open_run(run_dir)
    frozen = read_frozen(run_dir)
    check_shards(run_dir, deep=False)
    return run, frozen


def why_not_captured(run: Run, generation: str) -> str:
    """What the run says of a generation of which it holds nothing."""
    rows = run.generations.filter(pl.col("generation") == generation).collect().to_dicts()
    if not rows:
        return f"is not captured yet; go on with: traitscope run --resume {run.title}"
    return f"was not captured: {rows[0]['status']}: {rows[0]['error']}"


def find_generation(run: Run, wanted: str) -> tuple[str, str]:
    """The id and the label of a generation that is called by its id, the beginning of it, or
    ``experiment/prompt_id`` (of a steered experiment with its dose: ``experiment/prompt_id@+0.3``).

    Raises:
        InputError: none or several are called that.
    """
    if not wanted:
        raise InputError("--generation: is empty; give an id, the beginning of one, or experiment/prompt_id")
    labels: dict[str, list[str]] = {}
    for row in run.captures.collect().to_dicts():
        label = capture_label(row)
        if label not in labels.setdefault(row["generation"], []):
            labels[row["generation"]].append(label)
    found = [identity for identity, names in labels.items() if identity.startswith(wanted) or wanted in names]
    if len(found) == 1:
        names = labels[found[0]]
        return found[0], wanted if wanted in names else names[0]
    if not found:
        known = [f"{identity} ({names[0]})" for identity, names in list(labels.items())[:3]]
        raise InputError(
            f"--generation {wanted}: not in {run.title}; give an id, the beginning of one, or experiment/prompt_id, "
            f"such as {', '.join(known)}"
        )
    several = ", ".join(f"{identity} ({labels[identity][0]})" for identity in found[:3])
    raise InputError(f"--generation {wanted}: stands for {len(found)} generations: {several}, …; give more of the id")


def _refuse_without_spread(vectors: TraitVectors) -> None:
    if not math.isfinite(float(vectors.calibration.std["response_token"][vectors.readout])):
        raise InputError(f"--trait {vectors.trait}: its neutral replies do not vary at R, so that there is no z")
