"""Whether a trait rises or falls along responses, and from turn to turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.drift import LEAST_TOKENS, PER_TOKENS, theil_sen_slope, token_slope
from traitscope.analysis.resampling import LEAST_PROMPTS, Estimate, estimate, holm, permutation_p, sign_flip_p
from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.reading import Run, open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Curve, Curves, Dot, Intervals, Panel, Reference
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import (
    Asked,
    Response,
    asked_of,
    by_prompt,
    chosen_traits,
    in_experiments,
    means_of_prompts,
    responses_of,
    turns_of,
)
from traitscope.questions.wording import shown_interval, shown_p

_LEVEL = 0.05
_LIKE_NEUTRAL = "like neutral"
_NOTHING_TO_COMPARE = "no neutral replies to compare"


def ask_drift(run_dir: Path, options: QuestionOptions) -> Answer:
    """Slopes of z along responses, beside those of neutral replies, and across the assistant's turns.

    Each response has one slope (Theil and Sen's), each prompt the mean of its samples'. The mean slope of an experiment
    is tested against zero by flipping signs, and against the slopes of neutral replies by a permutation; both p values
    are adjusted over all traits and experiments (Holm).

    Raises:
        InputError: unknown trait or experiment; no response has content.
    """
    run = open_run(run_dir)
    asked = asked_of(run, options)
    along: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    courses: list[Panel] = []
    for trait in chosen_traits(run, options):
        neutral = _neutral_rows(run.traits[trait])
        groups = in_experiments(responses_of(run, trait, asked), lambda response: response)
        usual = np.array([float(token_slope(row)) for row in neutral if len(row) >= LEAST_TOKENS])
        along += [_along(trait, name, group, usual, options.seed) for name, group in groups.items()]
        turns += _over_turns(run, trait, asked, options.seed)
        courses.append(_course(trait, groups, neutral))
    if not along:
        raise InputError(f"run {run_dir}: no response has content for these traits and experiments")
    _adjust(along, "p_zero", "p_neutral")
    _adjust(turns, "p_zero")
    for value in along:
        value["verdict"] = _verdict(value)
    return Answer(
        kind="drift",
        title="Whether a trait rises or falls along responses",
        findings=(*_along_findings(along), *_turn_findings(turns)),
        tables=(_along_table(along), *([_turn_table(turns)] if turns else [])),
        panels=(_slopes_panel(along), *courses, *([_turn_panel(turns)] if turns else [])),
        values={"along": [_plain(value) for value in along], "turns": [_plain(value) for value in turns]},
    )


def _neutral_rows(calibration: TraitCalibration) -> list[np.ndarray]:
    """z of each neutral reply."""
    rows = [row[np.isfinite(row)] for row in calibration.neutral_trajectory]
    return [calibration.z(row, calibration.readout) for row in rows]


def _along(trait: str, experiment: str, group: Sequence[Response], usual: np.ndarray, seed: int) -> dict[str, Any]:
    """The slopes of one experiment beside ``usual`` ``[n_replies]``, those of neutral replies."""
    long = [response for response in group if len(response.z) >= LEAST_TOKENS]
    slopes = by_prompt(long, [float(token_slope(response.z)) for response in long])
    enough, comparable = len(slopes) >= LEAST_PROMPTS, min(len(slopes), len(usual)) >= LEAST_PROMPTS
    return {
        "trait": trait,
        "experiment": experiment,
        "prompts": len(slopes),
        "slope": estimate([slopes], seed=seed),
        "neutral_slope": estimate([usual], seed=seed),
        "p_zero": float(sign_flip_p(slopes, seed=seed)) if enough else float("nan"),
        "p_neutral": float(permutation_p(slopes, usual, seed=seed)) if comparable else float("nan"),
    }


def _over_turns(run: Run, trait: str, asked: Sequence[Asked], seed: int) -> list[dict[str, Any]]:
    """One entry for each experiment whose transcripts have two turns of the assistant or more."""
    found: dict[str, list[tuple[Asked, np.ndarray]]] = {}
    for entry, means in turns_of(run, trait, asked):
        if len(means) > 1:
            found.setdefault(entry.experiment, []).append((entry, means))
    return [_turn_entry(trait, name, transcripts, seed) for name, transcripts in found.items()]


def _turn_entry(
    trait: str, experiment: str, transcripts: Sequence[tuple[Asked, np.ndarray]], seed: int
) -> dict[str, Any]:
    samples: dict[int, list[np.ndarray]] = {}
    for entry, means in transcripts:
        samples.setdefault(entry.prompt, []).append(means)
    shortest = {prompt: min(map(len, own)) for prompt, own in samples.items()}
    prompts = [np.mean([means[: shortest[prompt]] for means in own], axis=0) for prompt, own in samples.items()]
    slopes = np.array([float(theil_sen_slope(means)) for means in prompts])
    turns = range(max(len(means) for means in prompts))
    at_turn = [np.array([means[turn] for means in prompts if len(means) > turn]) for turn in turns]
    return {
        "trait": trait,
        "experiment": experiment,
        "prompts": len(prompts),
        "slope": estimate([slopes], seed=seed),
        "p_zero": float(sign_flip_p(slopes, seed=seed)) if len(slopes) >= LEAST_PROMPTS else float("nan"),
        "turns": [estimate([values], seed=seed) for values in at_turn],
    }


def _adjust(values: Sequence[dict[str, Any]], *names: str) -> None:
    for name in names:
        for value, p in zip(values, holm([value[name] for value in values]), strict=True):
            value[f"{name}_adjusted"] = p


def _verdict(value: dict[str, Any]) -> str:
    if np.isnan(value["p_zero_adjusted"]):
        return "inconclusive"
    if value["p_zero_adjusted"] > _LEVEL:
        return "no drift found"
    direction = "rises" if value["slope"].value > 0 else "falls"
    if np.isnan(value["p_neutral_adjusted"]):
        return f"{direction} ({_NOTHING_TO_COMPARE})"
    return direction if value["p_neutral_adjusted"] <= _LEVEL else f"{direction}, {_LIKE_NEUTRAL}"


def _along_findings(values: Sequence[dict[str, Any]]) -> list[str]:
    moving = [value for value in values if value["verdict"].startswith(("rises", "falls"))]
    still = sum(value["verdict"] == "no drift found" for value in values)
    untold = len(values) - len(moving) - still
    sentences = [_moving(value) for value in moving]
    if still:
        sentences.append(f"No drift was found in {still} of {len(values)} rows (trait and experiment).")
    if untold:
        sentences.append(
            f"{untold} of {len(values)} rows are inconclusive: fewer than {LEAST_PROMPTS} prompts whose response has "
            f"{LEAST_TOKENS} content tokens or more."
        )
    return sentences


def _moving(value: dict[str, Any]) -> str:
    direction = "rises" if value["slope"].value > 0 else "falls"
    return (
        f"{value['trait']}, {value['experiment']}: z {direction} by {abs(value['slope'].value):.2f} per "
        f"{PER_TOKENS} tokens ({shown_interval(value['slope'])}; {value['prompts']} prompts, adjusted p "
        f"{shown_p(value['p_zero_adjusted'])}), {_beside_neutral(value)}."
    )


def _beside_neutral(value: dict[str, Any]) -> str:
    if value["verdict"].endswith(f"({_NOTHING_TO_COMPARE})"):
        return (
            f"beside fewer than {LEAST_PROMPTS} neutral replies of {LEAST_TOKENS} content tokens or more, so that it "
            "may be what every reply does"
        )
    usual = f"({value['neutral_slope'].value:+.2f})"
    if value["verdict"].endswith(_LIKE_NEUTRAL):
        return f"which cannot be told from what neutral replies do {usual}"
    return f"which neutral replies do not {usual}"


def _along_table(values: Sequence[dict[str, Any]]) -> AnswerTable:
    return AnswerTable(
        title=f"Change of z per {PER_TOKENS} tokens of the response",
        columns=(
            "trait",
            "experiment",
            "prompts",
            "slope",
            "95 %",
            "p",
            "neutral",
            "p against it",
            "verdict",
        ),
        rows=tuple(
            (
                value["trait"],
                value["experiment"],
                value["prompts"],
                value["slope"].value,
                shown_interval(value["slope"]),
                shown_p(value["p_zero_adjusted"]),
                value["neutral_slope"].value,
                shown_p(value["p_neutral_adjusted"]),
                value["verdict"],
            )
            for value in values
        ),
        note=(
            f"Mean over prompts of Theil and Sen's slope; responses of {LEAST_TOKENS} content tokens or more. p: sign "
            "flips (slope 0) and a permutation with neutral replies, both adjusted for all rows (Holm)."
        ),
    )


def _turn_findings(values: Sequence[dict[str, Any]]) -> list[str]:
    return [_turn_finding(value) for value in values]


def _turn_finding(value: dict[str, Any]) -> str:
    place = f"{value['trait']}, {value['experiment']}, across {len(value['turns'])} turns of the assistant"
    if np.isnan(value["p_zero_adjusted"]):
        return f"{place}: inconclusive: {value['prompts']} transcripts, {LEAST_PROMPTS} are needed."
    moves = "cannot be told from 0" if value["p_zero_adjusted"] > _LEVEL else "is not 0"
    return (
        f"{place}: the change of z per turn, {value['slope'].value:+.2f} ({shown_interval(value['slope'])}; "
        f"{value['prompts']} transcripts), {moves} (adjusted p {shown_p(value['p_zero_adjusted'])})."
    )


def _turn_table(values: Sequence[dict[str, Any]]) -> AnswerTable:
    rows = [
        (value["trait"], value["experiment"], number, turn.n, turn.value, shown_interval(turn))
        for value in values
        for number, turn in enumerate(value["turns"], start=1)
    ]
    return AnswerTable(
        title="Mean z of each turn of the assistant",
        columns=("trait", "experiment", "turn", "transcripts", "mean z", "95 %"),
        rows=tuple(rows),
        note="Over the turn's tokens without special and template tokens; the last turn is the response.",
    )


def _slopes_panel(values: Sequence[dict[str, Any]]) -> Intervals:
    dots = []
    for value in values:
        dots.append(_dot(f"{value['trait']}, {value['experiment']}", value["slope"], "responses"))
    for trait in dict.fromkeys(value["trait"] for value in values):
        usual = next(value["neutral_slope"] for value in values if value["trait"] == trait)
        dots.append(_dot(f"{trait}, neutral", usual, "neutral replies"))
    return Intervals(
        title=f"Change of z per {PER_TOKENS} tokens, mean over prompts with 95 % interval (open: too few prompts)",
        axis=f"z per {PER_TOKENS} tokens",
        dots=tuple(dot for dot in dots if np.isfinite(dot.value)),
        references=(Reference(0.0, "no drift"),),
    )


def _dot(label: str, found: Estimate, group: str) -> Dot:
    return Dot(label, found.value, found.low, found.high, group)


def _course(trait: str, groups: dict[str, list[Response]], neutral: Sequence[np.ndarray]) -> Curves:
    curves = [_mean_course("neutral replies", neutral, range(len(neutral)), null=True)] if neutral else []
    for name, group in groups.items():
        prompts = [response.asked.prompt for response in group]
        if len(set(prompts)) >= LEAST_PROMPTS:
            curves.append(_mean_course(name, [response.z for response in group], prompts))
    return Curves(
        title=f"{trait}: mean z along the response, in steps of {PER_TOKENS} tokens",
        x_label="content token of the response",
        y_label="mean z",
        curves=tuple(curves),
        references=(Reference(0.0, "neutral mean"),),
    )


def _mean_course(label: str, rows: Sequence[np.ndarray], prompts: Sequence[int], *, null: bool = False) -> Curve:
    """Means over the prompts whose responses ``rows`` are whole in a step; steps that fewer than ``LEAST_PROMPTS``
    reach are left out. ``prompts`` names the prompt of each row."""
    whole = [_step_means(rows, prompts, step) for step in range(max(len(row) for row in rows) // PER_TOKENS)]
    shown = [step for step, means in enumerate(whole) if len(means) >= LEAST_PROMPTS]
    centres = [(step + 0.5) * PER_TOKENS for step in shown]
    return Curve(label, tuple(centres), tuple(float(whole[step].mean()) for step in shown), null=null)


def _step_means(rows: Sequence[np.ndarray], prompts: Sequence[int], step: int) -> np.ndarray:
    """Means ``[n_prompts]`` over one step of ``PER_TOKENS`` tokens."""
    start, end = step * PER_TOKENS, (step + 1) * PER_TOKENS
    reaching = [(prompt, row[start:end].mean()) for row, prompt in zip(rows, prompts, strict=True) if len(row) >= end]
    return means_of_prompts([prompt for prompt, _ in reaching], [mean for _, mean in reaching])


def _turn_panel(values: Sequence[dict[str, Any]]) -> Intervals:
    dots = [
        _dot(f"{value['experiment']}, turn {number}", turn, value["trait"])
        for value in values
        for number, turn in enumerate(value["turns"], start=1)
    ]
    return Intervals(
        title="Mean z of each turn of the assistant, with 95 % interval over transcripts",
        axis="z",
        dots=tuple(dots),
        references=(Reference(0.0, "neutral mean"),),
    )


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain_item(item) for name, item in value.items()}


def _plain_item(item: Any) -> Any:
    if isinstance(item, Estimate):
        return asdict(item)
    return [_plain_item(one) for one in item] if isinstance(item, list) else item
