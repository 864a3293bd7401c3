"""Where responses settle on a trait, against the model's own replies to neutral prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.commitment import (
    LEAST_TOKENS,
    OLD_RULE_VARIANCE,
    OLD_RULE_WINDOW,
    Commitment,
    commitment_point,
    old_rule_commitment,
    settling_positions,
)
from traitscope.analysis.resampling import LEAST_PROMPTS, holm, permutation_p
from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.reading import open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Curve, Curves, Plain
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import (
    ALL,
    Response,
    asked_of,
    by_prompt,
    chosen_traits,
    in_experiments,
    means_of_prompts,
    responses_of,
)
from traitscope.questions.wording import shown_p, shown_share

_LEVEL = 0.05
_MOST_PROMPTS_SHOWN = 40
_FRACTIONS = np.linspace(0, 1, 41)


@dataclass(frozen=True)
class _Neutral:
    """Where neutral replies settle: positions ``[n]`` (-1: they do not) and lengths ``[n]`` of those long enough."""

    positions: np.ndarray
    lengths: np.ndarray
    longest: int

    @property
    def places(self) -> np.ndarray:
        """Where those that settle after the start do, as a fraction of the length."""
        moved = self.positions > 0
        return self.positions[moved] / self.lengths[moved]


@dataclass(frozen=True)
class _Settled:
    """One response: its commitment, and the same of as many tokens as neutral replies have."""

    response: Response
    commitment: Commitment
    old_rule: int | None
    cut_position: int
    cut_length: int


def ask_commitment(run_dir: Path, options: QuestionOptions) -> Answer:
    """Where responses settle, how often, and whether more or less often than neutral replies.

    A prompt counts once: its samples are averaged. Responses are compared with neutral replies over as many tokens as
    the longest neutral reply has, by a permutation of the share that comes to its final level after the start; p values
    are adjusted over all traits and experiments (Holm).

    Raises:
        InputError: unknown trait or experiment; vectors that are older than neutral trajectories; nothing to look at.
    """
    run = open_run(run_dir)
    asked = asked_of(run, options)
    values: list[dict[str, Any]] = []
    prompts: list[tuple[Plain, ...]] = []
    panels = []
    for trait in chosen_traits(run, options):
        neutral = _neutral(run.traits[trait], run_dir)
        responses = responses_of(run, trait, asked)
        settled = [_settled(response, run.traits[trait], neutral, options.seed) for response in responses]
        groups = in_experiments(settled, lambda one: one.response)
        values += [_compared(trait, name, group, neutral, options.seed) for name, group in groups.items()]
        prompts += [_prompt_row(trait, one) for one in settled]
        panels.append(_panel(trait, groups, neutral))
    if not values:
        raise InputError(f"run {run_dir}: no response has content for these traits and experiments")
    for value, p in zip(values, holm([value["p"] for value in values]), strict=True):
        value["p_adjusted"] = p
        value["verdict"] = _verdict(value)
    return Answer(
        kind="commitment-point",
        title="Where responses settle on a trait",
        findings=(*_findings(values), _old_rule_finding([row[-1] for row in prompts])),
        tables=(_experiments_table(values), _prompts_table(prompts)),
        panels=tuple(panels),
        values={"experiments": values, "prompts": [dict(zip(_PROMPT_COLUMNS, row, strict=True)) for row in prompts]},
    )


def _neutral(calibration: TraitCalibration, run_dir: Path) -> _Neutral:
    if not calibration.neutral_trajectory.size:
        raise InputError(
            f"run {run_dir}: the vectors of {calibration.trait} hold no neutral trajectories, they were fitted by an "
            "older version; run the suite again"
        )
    rows = [row[np.isfinite(row)] for row in calibration.neutral_trajectory]
    rows = [row for row in rows if len(row) >= LEAST_TOKENS]
    positions = [int(settling_positions(calibration.z(row, calibration.readout))) for row in rows]
    lengths = [len(row) for row in rows]
    return _Neutral(
        np.array(positions, dtype=int), np.array(lengths, dtype=int), calibration.neutral_trajectory.shape[1]
    )


def _settled(response: Response, calibration: TraitCalibration, neutral: _Neutral, seed: int) -> _Settled:
    cut = response.z[: neutral.longest]
    return _Settled(
        response,
        commitment_point(response.z, seed=seed),
        old_rule_commitment(calibration.raw(response.z, calibration.readout)),
        int(settling_positions(cut)),
        len(cut),
    )


def _compared(trait: str, experiment: str, group: Sequence[_Settled], neutral: _Neutral, seed: int) -> dict[str, Any]:
    """The responses of one experiment beside the neutral replies; only those that are long enough."""
    long = [one for one in group if one.cut_length >= LEAST_TOKENS]
    after = _shares(long, [one.cut_position > 0 for one in long])
    null = (neutral.positions > 0).astype(float)
    enough = min(len(after), len(null)) >= LEAST_PROMPTS
    return {
        "trait": trait,
        "experiment": experiment,
        "prompts": len(_shares(group, [True] * len(group))),
        "long_enough": len(after),
        "after_start": _mean(after),
        "from_start": _mean(_shares(long, [one.cut_position == 0 for one in long])),
        "unsettled": _mean(_shares(long, [one.cut_position < 0 for one in long])),
        "median_fraction": _median(_places(long)),
        "neutral_replies": len(null),
        "neutral_after_start": _mean(null),
        "neutral_from_start": _mean(neutral.positions == 0),
        "neutral_unsettled": _mean(neutral.positions < 0),
        "neutral_median_fraction": _median(neutral.places),
        "tokens_compared": neutral.longest,
        "p": float(permutation_p(after, null, seed=seed)) if enough else float("nan"),
        "where_p": _where_p(long, neutral),
    }


def _shares(group: Sequence[_Settled], holds: Sequence[bool]) -> np.ndarray:
    """``[n_prompts]``: the share of each prompt's samples that ``holds``."""
    return by_prompt([one.response for one in group], holds)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _places(long: Sequence[_Settled]) -> np.ndarray:
    """``[n_prompts]``: where the samples that settle after the start do, as a fraction of the length, on average."""
    moved = [one for one in long if one.cut_position > 0]
    return by_prompt([one.response for one in moved], [one.cut_position / one.cut_length for one in moved])


def _median(places: np.ndarray) -> float:
    return float(np.median(places)) if len(places) else float("nan")


def _where_p(long: Sequence[_Settled], neutral: _Neutral) -> float:
    """Whether those that settle after the start do so elsewhere than neutral replies (Mann and Whitney, 1947)."""
    from scipy.stats import mannwhitneyu

    own, usual = _places(long), neutral.places
    if min(len(own), len(usual)) < LEAST_PROMPTS:
        return float("nan")
    return float(mannwhitneyu(own, usual).pvalue)


def _verdict(value: dict[str, Any]) -> str:
    if np.isnan(value["p_adjusted"]):
        return "inconclusive"
    if value["p_adjusted"] > _LEVEL:
        return "no difference"
    return "more often" if value["after_start"] > value["neutral_after_start"] else "less often"


def _findings(values: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    told = [value for value in values if value["verdict"] != "inconclusive"]
    alone = len({value["experiment"] for value in values}) == 1
    named = [value for value in told if value["verdict"] != "no difference" or alone or value["experiment"] == ALL]
    sentences = [_finding(value) for value in named]
    if unnamed := len(told) - len(named):
        sentences.append(f"{unnamed} further rows (trait and experiment) cannot be told from neutral replies.")
    if untold := len(values) - len(told):
        sentences.append(
            f"{untold} of {len(values)} rows are inconclusive: fewer than {LEAST_PROMPTS} prompts (or neutral replies) "
            f"with {LEAST_TOKENS} content tokens or more."
        )
    return tuple(sentences)


def _old_rule_finding(found: Sequence[Plain]) -> str:
    settled, rows = sum(position is not None for position in found), len(found)
    return (
        f"The rule of earlier scripts (first {OLD_RULE_WINDOW} tokens whose variance of the raw score is below "
        f"{OLD_RULE_VARIANCE}) finds a point in {settled} of {rows} rows (trait and response)."
    )


def _finding(value: dict[str, Any]) -> str:
    beside = {
        "more often": "more often than",
        "less often": "less often than",
        "no difference": "which cannot be told from",
    }[value["verdict"]]
    return (
        f"{value['trait']}, {value['experiment']}: {value['after_start']:.0%} of {value['long_enough']} prompts come "
        f"to their final level after the start, {beside} neutral replies ({value['neutral_after_start']:.0%} of "
        f"{value['neutral_replies']}; adjusted p {shown_p(value['p_adjusted'])}); {value['from_start']:.0%} are at it "
        f"from the start, {value['unsettled']:.0%} do not settle."
    )


def _experiments_table(values: Sequence[dict[str, Any]]) -> AnswerTable:
    return AnswerTable(
        title="How often responses settle, and how often neutral replies do",
        columns=("trait", "experiment", "prompts", "settle", "where", "neutral settle", "where", "p", "verdict"),
        rows=tuple(
            (
                value["trait"],
                value["experiment"],
                value["long_enough"],
                _three(value, ""),
                shown_share(value["median_fraction"]),
                _three(value, "neutral_"),
                shown_share(value["neutral_median_fraction"]),
                shown_p(value["p_adjusted"]),
                value["verdict"],
            )
            for value in values
        ),
        note=(
            f"Of prompts with {LEAST_TOKENS} content tokens or more, over as many tokens as neutral replies have. "
            "Settle: after the start / from the start / not at all. Where: median share of the length, of those that "
            "settle after the start. p: permutation of prompts and neutral replies, adjusted for all rows (Holm)."
        ),
    )


def _three(value: dict[str, Any], side: str) -> str | None:
    shares = [value[side + name] for name in ("after_start", "from_start", "unsettled")]
    return None if np.isnan(shares[0]) else " / ".join(f"{100 * share:.0f}" for share in shares) + " %"


_PROMPT_COLUMNS = ("trait", "prompt", "sample", "tokens", "commitment", "low", "high", "token", "level", "old rule")


def _prompt_row(trait: str, one: _Settled) -> tuple[Plain, ...]:
    found = one.commitment
    token = None if found.position is None else one.response.tokens[found.position]
    ends = (found.position, found.low, found.high)
    asked = one.response.asked
    return (trait, asked.label, asked.sample, len(one.response.z), *ends, token, found.level, one.old_rule)


def _prompts_table(rows: Sequence[tuple[Plain, ...]]) -> AnswerTable:
    left_out = len(rows) - _MOST_PROMPTS_SHOWN
    return AnswerTable(
        title="Each response",
        columns=_PROMPT_COLUMNS,
        rows=tuple(rows[:_MOST_PROMPTS_SHOWN]),
        note=(
            "Commitment: index among the content tokens, with its 95 % interval; 0: at its final level from the start; "
            f"–: does not settle, or fewer than {LEAST_TOKENS} tokens. Level: mean z of the last 16. Old rule: first "
            f"{OLD_RULE_WINDOW} tokens whose variance of the raw score is below {OLD_RULE_VARIANCE}."
            + (f" {left_out} more are in the JSON." if left_out > 0 else "")
        ),
    )


def _panel(trait: str, groups: dict[str, list[_Settled]], neutral: _Neutral) -> Curves:
    own = range(len(neutral.positions))
    curves = [_cumulative("neutral replies", neutral.positions, neutral.lengths, own, null=True)] if own else []
    for name, group in groups.items():
        long = [one for one in group if one.cut_length >= LEAST_TOKENS]
        prompts = [one.response.asked.prompt for one in long]
        if len(set(prompts)) >= LEAST_PROMPTS:
            positions = np.array([one.cut_position for one in long])
            lengths = np.array([one.cut_length for one in long])
            curves.append(_cumulative(name, positions, lengths, prompts))
    return Curves(
        title=f"{trait}: share of responses that have come to their final level (number of prompts)",
        x_label="share of the response read",
        y_label="share settled",
        curves=tuple(curves),
        y_range=(0, 1.02),
    )


def _cumulative(
    label: str, positions: np.ndarray, lengths: np.ndarray, prompts: Sequence[int], *, null: bool = False
) -> Curve:
    """Mean over prompts of the share of their samples; ``prompts`` names the prompt of each position."""
    fractions = np.where(positions >= 0, positions / np.maximum(lengths, 1), np.inf)
    shares = [float(means_of_prompts(prompts, fractions <= share).mean()) for share in _FRACTIONS]
    return Curve(f"{label} ({len(set(prompts))})", tuple(_FRACTIONS.tolist()), tuple(shares), null=null)
