"""Does a reader rise with the behaviour, or with an instruction's words?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.confound import MARGIN, Confound, compare_arms
from traitscope.analysis.resampling import LEAST_PROMPTS, Estimate, estimate
from traitscope.captures.reading import open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Dot, Intervals, Plain, Reference
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import Response, asked_of, by_prompt, chosen_traits, responses_of
from traitscope.questions.wording import shown_interval

ARMS = ("natural", "instructed", "plain")
RESPONSE, PROMPT_LAST = "response", "last prompt token"


@dataclass(frozen=True)
class _Compared:
    """One trait on the arms of one behaviour, at one place of the text."""

    behaviour: str
    trait: str
    place: str
    means: dict[str, Estimate]
    found: Confound


def ask_confound(run_dir: Path, options: QuestionOptions) -> Answer:
    """Compare the arms of experiments called ``<behaviour>-natural``, ``-instructed`` and ``-plain``.

    A prompt's value is its mean z at R over the response's content tokens (samples averaged); the same for z of the
    prompt's last token, by the neutral replies' prompt ends, which is before anything was answered.

    Raises:
        InputError: unknown trait or experiment; no behaviour has all three arms.
    """
    run = open_run(run_dir)
    asked = asked_of(run, options)
    behaviours = behaviours_with_all_arms(entry.experiment for entry in asked)
    if not behaviours:
        raise InputError(
            f"run {run_dir}: no behaviour has three experiments called <behaviour>-natural, <behaviour>-instructed and "
            "<behaviour>-plain; the built-in suite confound has"
        )
    compared = [
        entry
        for trait in chosen_traits(run, options)
        for entry in _compared(trait, responses_of(run, trait, asked), behaviours, options.seed)
    ]
    if not compared:
        raise InputError(f"run {run_dir}: no response of the arms has content for these traits")
    return Answer(
        kind="instruction-confound",
        title="Does a reader rise with the behaviour, or with an instruction's words?",
        findings=tuple(_finding(entry) for entry in compared if entry.place == RESPONSE),
        tables=tuple(_table(place, [entry for entry in compared if entry.place == place]) for place in _PLACES),
        panels=(_effects_panel(compared), _means_panel(compared)),
        values={"margin": MARGIN, "compared": [_plain(entry) for entry in compared]},
    )


_PLACES = (RESPONSE, PROMPT_LAST)


def behaviours_with_all_arms(experiments: Iterable[str]) -> tuple[str, ...]:
    """Behaviours of which there is an experiment for each of ``ARMS``."""
    names = set(experiments)
    known = dict.fromkeys(name.rpartition("-")[0] for name in names if name.rpartition("-")[2] in ARMS)
    return tuple(sorted(name for name in known if all(f"{name}-{arm}" in names for arm in ARMS)))


def _compared(trait: str, responses: Sequence[Response], behaviours: Sequence[str], seed: int) -> list[_Compared]:
    found = []
    for behaviour in behaviours:
        arms = {arm: [r for r in responses if r.asked.experiment == f"{behaviour}-{arm}"] for arm in ARMS}
        if not any(arms.values()):
            continue  # the arms did not ask for this trait
        at = {
            RESPONSE: {arm: by_prompt(own, [float(r.z.mean()) for r in own]) for arm, own in arms.items()},
            PROMPT_LAST: {arm: by_prompt(own, [r.z_prompt_last for r in own]) for arm, own in arms.items()},
        }
        found += [_entry(behaviour, trait, place, values, seed) for place, values in at.items()]
    return found


def _entry(behaviour: str, trait: str, place: str, values: Mapping[str, np.ndarray], seed: int) -> _Compared:
    # z of a prompt's end is NaN where every neutral prompt ends in the same state.
    finite = {arm: own[np.isfinite(own)] for arm, own in values.items()}
    means = {arm: estimate([own], seed=seed) for arm, own in finite.items()}
    return _Compared(behaviour, trait, place, means, compare_arms(*(finite[arm] for arm in ARMS), seed=seed))


def _finding(entry: _Compared) -> str:
    found = entry.found
    place = f"{entry.trait} on {entry.behaviour}: {found.verdict}: {found.reason}"
    if found.natural_over_instructed.low is None:
        return f"{place} ({', '.join(f'{arm} {entry.means[arm].n}' for arm in ARMS)}; {LEAST_PROMPTS} are needed)."
    instruction = found.instructed_over_plain
    heard = found.verdict == "inconclusive" and instruction.low is not None and instruction.low > MARGIN
    return (
        f"{place}{'; the instruction alone raises it by more' if heard else ''}. d of natural over instructed "
        f"{_worded(found.natural_over_instructed)}, of natural over plain "
        f"{_worded(found.natural_over_plain)}, of instructed over plain {_worded(instruction)}; margin {MARGIN}."
    )


def _worded(found: Estimate) -> str:
    interval = shown_interval(found)
    return f"{found.value:+.2f}" + (f" ({interval})" if interval else "")


def _table(place: str, compared: Sequence[_Compared]) -> AnswerTable:
    where = "over the response" if place == RESPONSE else "at the prompt's last token, before anything is answered"
    return AnswerTable(
        title=f"Mean z {where}, and effect sizes between arms",
        columns=("trait", "behaviour", *ARMS, "prompts", "d n/i", "d n/p", "d i/p", "verdict"),
        rows=tuple(_row(entry) for entry in compared),
        note=(
            "d n/i, n/p, i/p: Hedges' d of natural over instructed, natural over plain, instructed over plain, with "
            f"95 % interval by bootstrap over prompts. Clean: n/i lies above {MARGIN}; confounded: below. Inconclusive "
            f"where it spans {MARGIN}, where n/p does not lie above it, or where an arm has too few prompts."
        ),
    )


def _row(entry: _Compared) -> tuple[Plain, ...]:
    found = entry.found
    effects = (found.natural_over_instructed, found.natural_over_plain, found.instructed_over_plain)
    return (
        entry.trait,
        entry.behaviour,
        *(entry.means[arm].value for arm in ARMS),
        " / ".join(str(entry.means[arm].n) for arm in ARMS),
        *(_worded(effect) if np.isfinite(effect.value) else None for effect in effects),
        found.verdict,
    )


def _effects_panel(compared: Sequence[_Compared]) -> Intervals:
    dots = [
        Dot(f"{entry.trait} on {entry.behaviour}", effect.value, effect.low, effect.high, entry.place)
        for entry in compared
        if np.isfinite((effect := entry.found.natural_over_instructed).value)
    ]
    return Intervals(
        title="Natural over instructed prompts: clean right of the margin, confounded left of it (95 % intervals)",
        axis="Hedges' d",
        dots=tuple(dots),
        references=(Reference(MARGIN, f"margin {MARGIN}"), Reference(0.0, "no difference")),
    )


def _means_panel(compared: Sequence[_Compared]) -> Intervals:
    dots = [
        Dot(f"{entry.trait} on {entry.behaviour}, {arm}", mean.value, mean.low, mean.high, arm)
        for entry in compared
        if entry.place == RESPONSE
        for arm in ARMS
        if np.isfinite((mean := entry.means[arm]).value)
    ]
    return Intervals(
        title="Mean z over the response, by arm (95 % intervals over prompts)",
        axis="mean z",
        dots=tuple(dots),
        references=(Reference(0.0, "neutral mean"),),
    )


def _plain(entry: _Compared) -> dict[str, Any]:
    return asdict(entry)
