"""Does a trait's score follow the dose of steering?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.dose_response import DoseResponse, dose_response
from traitscope.analysis.resampling import LEAST_PROMPTS, holm
from traitscope.captures.reading import open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Curve, Curves, Plain, Reference
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import Response, asked_of, by_prompt, chosen_traits, responses_of
from traitscope.questions.wording import shown_interval, shown_p

_LEVEL = 0.05


@dataclass(frozen=True)
class _Followed:
    """How one trait follows the doses of one steered experiment; ``p_adjusted`` over all of them."""

    experiment: str
    steer_trait: str
    trait: str
    prompts: int
    left_out: int
    found: DoseResponse
    p_adjusted: float

    @property
    def verdict(self) -> str:
        if np.isnan(self.p_adjusted):
            return "inconclusive"
        if self.p_adjusted > _LEVEL:
            return "no effect found"
        return "rises" if self.found.slope.value > 0 else "falls"


def ask_dose_response(run_dir: Path, options: QuestionOptions) -> Answer:
    """Mean z of each trait at each dose of the steered experiments, compared within prompts.

    A prompt whose response lacks content at a dose is left out. p values (sign flips of the prompts' slopes) are
    adjusted over all traits and experiments (Holm).

    z at R holds the push itself where a pushed layer is R's or before it: a slope then says that the push arrives, not
    yet that the text changes.

    Raises:
        InputError: unknown trait or experiment; no experiment is steered with two doses or more.
    """
    run = open_run(run_dir)
    steered = [entry for entry in asked_of(run, options, steered=True) if entry.steer_trait is not None]
    if not steered:
        raise InputError(
            f"run {run_dir}: no experiment is steered; give one in the suite, "
            "steer: {trait: TRAIT, alpha: [-0.3, 0, 0.3]}"
        )
    followed = []
    for trait in chosen_traits(run, options):
        groups: dict[tuple[str, str], list[Response]] = {}
        for response in responses_of(run, trait, steered):
            groups.setdefault((response.asked.experiment, str(response.asked.steer_trait)), []).append(response)
        followed += [
            entry
            for (experiment, steer_trait), group in groups.items()
            if (entry := _followed(experiment, steer_trait, trait, group, options.seed)) is not None
        ]
    if not followed:
        raise InputError(f"run {run_dir}: no steered experiment has responses to two doses or more of one prompt")
    adjusted = holm([entry.found.p for entry in followed])
    followed = [replace(entry, p_adjusted=p) for entry, p in zip(followed, adjusted, strict=True)]
    return Answer(
        kind="dose-response",
        title="Does a trait's score follow the dose of steering?",
        findings=tuple(_finding(entry) for entry in followed),
        tables=(_slopes_table(followed), _means_table(followed)),
        panels=tuple(_panel(name, followed) for name in dict.fromkeys(entry.experiment for entry in followed)),
        values={"followed": [_plain(entry) for entry in followed]},
    )


def _followed(experiment: str, steer_trait: str, trait: str, group: Sequence[Response], seed: int) -> _Followed | None:
    doses = sorted({float(response.asked.alpha or 0) for response in group})
    by_id: dict[int, list[Response]] = {}
    for response in group:
        by_id.setdefault(response.asked.prompt, []).append(response)
    rows = [_at_doses(own, doses) for own in by_id.values()]
    whole = [row for row in rows if np.isfinite(row).all()]
    if len(doses) < 2 or not whole:
        return None
    found = dose_response(np.array(whole), np.array(doses), seed=seed)
    return _Followed(experiment, steer_trait, trait, len(whole), len(rows) - len(whole), found, float("nan"))


def _at_doses(responses: Sequence[Response], doses: Sequence[float]) -> list[float]:
    """Mean z of one prompt at each dose, over its samples; NaN where no response has content."""
    at = [[response for response in responses if (response.asked.alpha or 0) == dose] for dose in doses]
    means = [by_prompt(own, [float(response.z.mean()) for response in own]) for own in at]
    return [float(mean[0]) if len(mean) else float("nan") for mean in means]


def _finding(entry: _Followed) -> str:
    place = f"{entry.trait} when {entry.steer_trait} is pushed ({entry.experiment})"
    if entry.verdict == "inconclusive":
        return f"{place}: inconclusive: {entry.prompts} prompts have all doses, {LEAST_PROMPTS} are needed."
    slope, rank = entry.found.slope, entry.found.monotonicity
    said = {
        "rises": f"z rises by {slope.value:.2f}",
        "falls": f"z falls by {-slope.value:.2f}",
        "no effect found": f"no effect was found: z changes by {slope.value:+.2f}",
    }[entry.verdict]
    return (
        f"{place}: {said} per unit of dose ({shown_interval(slope)}; {entry.prompts} prompts, "
        f"adjusted p {shown_p(entry.p_adjusted)}); rank correlation with the dose {rank.value:+.2f} "
        f"({shown_interval(rank)})."
    )


def _slopes_table(followed: Sequence[_Followed]) -> AnswerTable:
    return AnswerTable(
        title="How z follows the dose",
        columns=("experiment", "pushed", "trait", "prompts", "slope", "95 %", "rank", "95 %", "p", "verdict"),
        rows=tuple(
            (
                entry.experiment,
                entry.steer_trait,
                entry.trait,
                entry.prompts,
                entry.found.slope.value,
                shown_interval(entry.found.slope),
                entry.found.monotonicity.value,
                shown_interval(entry.found.monotonicity),
                shown_p(entry.p_adjusted),
                entry.verdict,
            )
            for entry in followed
        ),
        note=(
            "Slope: z per unit of dose (one median norm of the state), mean over prompts. Rank: correlation of the "
            "ranks of z and dose within a prompt, likewise. 95 % by bootstrap over prompts. p: sign flips of prompts' "
            "slopes, adjusted for all rows (Holm). z at R holds the push itself where a pushed layer is R's or earlier."
        ),
    )


def _means_table(followed: Sequence[_Followed]) -> AnswerTable:
    rows: list[tuple[Plain, ...]] = [
        (entry.experiment, entry.trait, dose, mean.value, shown_interval(mean))
        for entry in followed
        for dose, mean in zip(entry.found.doses, entry.found.means, strict=True)
    ]
    return AnswerTable(
        title="Mean z at each dose", columns=("experiment", "trait", "dose", "mean z", "95 %"), rows=tuple(rows)
    )


def _panel(experiment: str, followed: Sequence[_Followed]) -> Curves:
    own = [entry for entry in followed if entry.experiment == experiment]
    return Curves(
        title=f"{experiment}: mean z of the response when {own[0].steer_trait} is pushed (bands: 95 % over prompts)",
        x_label="dose, in median norms of the state",
        y_label="mean z",
        curves=tuple(_curve(entry) for entry in own),
        references=(Reference(0.0, "neutral mean"),),
    )


def _curve(entry: _Followed) -> Curve:
    means = entry.found.means
    lows = tuple(mean.low for mean in means if mean.low is not None)
    highs = tuple(mean.high for mean in means if mean.high is not None)
    banded = len(lows) == len(means)
    values = tuple(mean.value for mean in means)
    return Curve(entry.trait, entry.found.doses, values, lows if banded else None, highs if banded else None)


def _plain(entry: _Followed) -> dict[str, Any]:
    return {**asdict(entry), "verdict": entry.verdict}
