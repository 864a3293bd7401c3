"""Where along the model a trait can be read that neither the embeddings nor the words give away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from traitscope.analysis.effect_size import auroc
from traitscope.analysis.emergence import LEAST_TOPICS, Emergence, emergence
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Curve, Curves, Plain, Reference
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import chosen_traits
from traitscope.questions.scenario_sets import Sourced, counted, run_model, those_with_sets

if TYPE_CHECKING:
    from traitscope.model.loading import LanguageModel
    from traitscope.traits.scenarios import Pair
    from traitscope.traits.validation.baselines import BagOfWords

OWN_TEXT_TOPICS = 24
"""The model's own text is written after prompts on this many topics, those of the dev split first."""
_CROSSED, _OWN = "style-crossed pairs", "own text"


@dataclass(frozen=True)
class _Evidence:
    """One trait on one kind of text."""

    trait: str
    kind: str
    found: Emergence


@dataclass(frozen=True)
class _Examined:
    """One trait: its checkpoints, the evidence on both kinds of text, and beside it the AUROC on ordinary pairs."""

    sourced: Sourced
    checkpoints: tuple[str, ...]
    evidence: tuple[_Evidence, ...]
    ordinary: np.ndarray


def ask_emergence(run_dir: Path, options: QuestionOptions) -> Answer:
    """Replay each trait's dev pairs and text that the model writes after prefills, with the run's vectors at all
    checkpoints, and find the first checkpoint that beats checkpoint 0 and a bag of words.

    Raises:
        InputError: unknown trait; a trait that was named has no scenario set in the library or no reader at checkpoint
            0; not the run's model.
    """
    from traitscope.attribution.explanation import sound_run

    run, frozen = sound_run(run_dir)
    names = chosen_traits(run, options)
    chosen = [vectors for vectors in frozen.vectors if vectors.trait in names]
    traits, left_out = those_with_sets(chosen, named=bool(options.traits), check=_refuse_unusable)
    model = run_model(run_dir)
    with counted("reading texts at all checkpoints", sum(map(_n_texts, traits))) as count:
        examined = [_examine(model, trait, options.seed, count) for trait in traits]
    return Answer(
        kind="emergence",
        title="Where a trait can be read beyond embeddings and words",
        findings=(*_findings(examined), *left_out),
        tables=(_table(examined),),
        panels=tuple(_panel(one) for one in examined),
        values={"evidence": [_described(row, one) for one in examined for row in one.evidence]},
    )


def _refuse_unusable(trait: Sourced) -> None:
    if not bool(trait.vectors.covered[0]):
        raise InputError(
            f"trait {trait.vectors.trait}: its vectors have no direction at {trait.vectors.checkpoints[0]}"
        )
    if not any(pair.crossed is None for pair in trait.scenarios.splits.dev) or trait.scenarios.prefills is None:
        raise InputError(f"trait {trait.vectors.trait}: its scenario set needs dev pairs and prefills")


def _prompts(trait: Sourced) -> list[Pair]:
    """The pairs whose prompts the model writes on: one a topic."""
    first: dict[str, Pair] = {}
    for pair in (*trait.scenarios.splits.dev, *trait.scenarios.splits.train):
        first.setdefault(pair.topic, pair)
    return list(first.values())[:OWN_TEXT_TOPICS]


def _n_texts(trait: Sourced) -> int:
    from traitscope.traits.validation.own_text import PREFILLS_PER_PROMPT

    # Each own text is counted twice: when it is written and when it is read.
    return 2 * len(trait.scenarios.splits.dev) + 4 * PREFILLS_PER_PROMPT * len(_prompts(trait))


def _examine(model: LanguageModel, trait: Sourced, seed: int, count: Callable[[], None]) -> _Examined:
    from traitscope.traits.validation.baselines import BagOfWords
    from traitscope.traits.validation.evidence import responses

    covered = np.flatnonzero(trait.vectors.covered.numpy())
    bag = BagOfWords(*responses(trait.scenarios, "train"))
    crossed, ordinary = _pair_texts(model, trait, covered, bag, count)
    kinds = {_CROSSED: crossed, _OWN: _own_texts(model, trait, covered, bag, count)}
    evidence = [
        _Evidence(trait.vectors.trait, kind, emergence(*texts.scores, *texts.topics, texts.words, seed=seed))
        for kind, texts in kinds.items()
        if all(texts.topics)
    ]
    names = tuple(trait.vectors.checkpoints[index] for index in covered)
    plain = np.array([auroc(ups, downs) for ups, downs in zip(*ordinary.scores, strict=True)])
    return _Examined(trait, names, tuple(evidence), plain)


@dataclass(frozen=True)
class _Texts:
    """Texts of both poles, positive first: scores ``[n_checkpoints, n]``, topics, and scores ``[n]`` of the words."""

    scores: tuple[np.ndarray, np.ndarray]
    topics: tuple[list[str], list[str]]
    words: tuple[np.ndarray, np.ndarray]

    def where(self, chosen: np.ndarray) -> _Texts:
        """Those pairs that are ``chosen`` ``[n]``."""
        topics = [topic for topic, there in zip(self.topics[0], chosen, strict=True) if there]
        return _Texts(
            (self.scores[0][:, chosen], self.scores[1][:, chosen]),
            (topics, topics),
            (self.words[0][chosen], self.words[1][chosen]),
        )


def _pair_texts(
    model: LanguageModel, trait: Sourced, covered: np.ndarray, bag: BagOfWords, count: Callable[[], None]
) -> tuple[_Texts, _Texts]:
    """The dev pairs: style-crossed ones, ordinary ones."""
    from traitscope.traits.pooling import pool_pairs
    from traitscope.traits.validation.evidence import responses

    dev = pool_pairs(model, trait.scenarios.splits.dev, trait.style, count, checkpoints=covered.tolist())
    up, down = responses(trait.scenarios, "dev")
    texts = _Texts(
        (_scores(dev.positive, trait, covered), _scores(dev.negative, trait, covered)),
        (list(dev.topics), list(dev.topics)),
        (bag.scores(up), bag.scores(down)),
    )
    return texts.where(dev.crossed), texts.where(~dev.crossed)


def _own_texts(
    model: LanguageModel, trait: Sourced, covered: np.ndarray, bag: BagOfWords, count: Callable[[], None]
) -> _Texts:
    """What the model writes after prefills of both poles."""
    from traitscope.traits.validation.own_text import POLES, after_prefills, write_on

    assert trait.scenarios.prefills is not None
    beginnings = after_prefills(model, _prompts(trait), trait.scenarios.prefills, trait.style)
    own = write_on(model, beginnings, covered.tolist(), count)
    up, down = POLES
    return _Texts(
        (_scores(own.states[up], trait, covered), _scores(own.states[down], trait, covered)),
        (own.topics[up], own.topics[down]),
        (_of_words(bag, own.texts[up]), _of_words(bag, own.texts[down])),
    )


def _of_words(bag: BagOfWords, texts: list[str]) -> np.ndarray:
    return bag.scores(texts) if texts else np.zeros(0)


def _scores(states: np.ndarray, trait: Sourced, covered: np.ndarray) -> np.ndarray:
    """``[n_checkpoints, n]`` of states ``[n, n_checkpoints, d_model]``, each by the reader of its checkpoint."""
    return np.einsum("ncd,cd->cn", states, trait.vectors.reader.numpy()[covered], optimize=True)


def _findings(examined: Sequence[_Examined]) -> list[str]:
    at_once = [one.ordinary[0] for one in examined]
    sentences = [
        "The first layer above chance would say nothing: on ordinary dev pairs the readers of checkpoint 0, the "
        f"embeddings, have an AUROC of {min(at_once):.2f} to {max(at_once):.2f}. What follows are gains over them and "
        "over words."
    ]
    for one in examined:
        sentences += [_finding(row, one.checkpoints) for row in one.evidence]
    return sentences


def _finding(row: _Evidence, checkpoints: Sequence[str]) -> str:
    found = row.found
    where = f"{row.trait}, {row.kind}"
    best = int(np.argmax(found.auroc.value))
    aurocs = (
        f"AUROC {found.auroc.value[0]:.2f} at checkpoint 0, {found.words[0]:.2f} of the words, "
        f"{found.auroc.value[best]:.2f} at best ({checkpoints[best]})"
    )
    if found.outcome == "inconclusive":
        return f"{where}: inconclusive, as {found.n_topics} topics are fewer than {LEAST_TOPICS}; {aurocs}."
    if found.checkpoint is None:
        return f"{where}: {found.outcome} over both baselines; {aurocs}, {found.n_topics} topics."
    at = found.checkpoint
    return (
        f"{where}: emerges at {checkpoints[at]} with AUROC {found.auroc.value[at]:.2f}, a gain of "
        f"{_interval(found.over_first.curve, at)} over checkpoint 0 and of {_interval(found.over_words.curve, at)} "
        f"over the words; {aurocs}, {found.n_topics} topics."
    )


def _interval(curve: Any, at: int) -> str:
    return f"{curve.value[at]:+.2f} [{curve.low[at]:+.2f}, {curve.high[at]:+.2f}]"


_COLUMNS = ("trait", "on", "topics", "checkpoint 0", "words", "best", "at", "over 0", "over words", "emergence")


def _table(examined: Sequence[_Examined]) -> AnswerTable:
    return AnswerTable(
        title="How well scores tell the poles apart (AUROC), and where that is more than a baseline's",
        columns=_COLUMNS,
        rows=tuple(_row(row, one.checkpoints) for one in examined for row in one.evidence),
        note=(
            "Checkpoint 0: its own reader. Words: a bag of words fitted on the training pairs. Best: the checkpoint "
            "with the largest AUROC. Over 0, over words: the first checkpoint whose gain has p <= 0.05 there and at "
            "the next (sign flips of topics, the largest gain of all checkpoints as null). Emergence: both. Of rows "
            "without any gain, at most 5 % show one. Own text may gain by attention to the prefill that the model was "
            "given, which neither baseline sees."
        ),
    )


def _row(row: _Evidence, checkpoints: Sequence[str]) -> tuple[Plain, ...]:
    found = row.found
    best = int(np.argmax(found.auroc.value))
    alone = [gain.first for gain in (found.over_first, found.over_words)]
    return (
        row.trait,
        row.kind,
        found.n_topics,
        _two(found.auroc.value[0]),
        _two(found.words[0]),
        _two(found.auroc.value[best]),
        checkpoints[best],
        *(None if at is None else checkpoints[at] for at in alone),
        found.outcome if found.checkpoint is None else checkpoints[found.checkpoint],
    )


def _two(value: float) -> str:
    return f"{value:.2f}"


def _panel(one: _Examined) -> Curves:
    x = tuple(float(n) for n in range(len(one.checkpoints)))
    curves = [Curve("ordinary dev pairs", x, tuple(one.ordinary.tolist()), null=True)]
    references = []
    for row in one.evidence:
        auroc_curve = row.found.auroc
        low, high = tuple(auroc_curve.low.tolist()), tuple(auroc_curve.high.tolist())
        curves.append(
            Curve(f"{row.kind} ({row.found.n_topics} topics)", x, tuple(auroc_curve.value.tolist()), low, high)
        )
        references.append(Reference(row.found.words[0], f"words on {row.kind} (horizontal)"))
    marks = [
        Reference(float(row.found.checkpoint), f"emergence on {row.kind} (vertical)")
        for row in one.evidence
        if row.found.checkpoint is not None
    ]
    readout = one.checkpoints.index(one.sourced.vectors.readout_name)
    return Curves(
        title=f"{one.sourced.vectors.trait}: AUROC of each checkpoint's own reader",
        x_label="checkpoint",
        y_label="AUROC",
        curves=tuple(curves),
        references=tuple(references),
        marks=(Reference(float(readout), "readout R (vertical)"), *marks),
        x_names=one.checkpoints,
    )


def _described(row: _Evidence, one: _Examined) -> dict[str, Any]:
    found = row.found
    return {
        "trait": row.trait,
        "on": row.kind,
        "topics": found.n_topics,
        "outcome": found.outcome,
        "emergence": None if found.checkpoint is None else one.checkpoints[found.checkpoint],
        "checkpoints": list(one.checkpoints),
        "auroc": _curve_values(found.auroc),
        "ordinary_pairs_auroc": one.ordinary,
        "words_auroc": found.words,
        **{
            name: {**_curve_values(gain.curve), "p": gain.p, "threshold": gain.threshold}
            for name, gain in (("over_first", found.over_first), ("over_words", found.over_words))
        },
    }


def _curve_values(curve: Any) -> dict[str, Any]:
    return {"value": curve.value, "low": curve.low, "high": curve.high}
