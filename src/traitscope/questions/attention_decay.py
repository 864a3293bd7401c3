"""How long heads keep looking at tokens of the prompt (or at one token) while the response grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from traitscope.analysis.attention_decay import (
    LEAST_QUERIES,
    HeadDecay,
    decay_rates,
    heads_decay,
    relative_attention,
)
from traitscope.analysis.resampling import LEAST_PROMPTS
from traitscope.captures.reading import Run, open_run
from traitscope.errors import InputError
from traitscope.questions.answer import Answer, AnswerTable, Curve, Curves, Dot, Intervals, Panel, Plain, Reference
from traitscope.questions.options import QuestionOptions
from traitscope.questions.responses import Asked, asked_of
from traitscope.suite.tokens import content_mask

_MOST_CURVES = 6
_MOST_NAMED = 5
_BEGINNING = 8
_LONGEST = 1000


@dataclass(frozen=True)
class _Read:
    """One open layer of one generation: ``relative`` ``[heads, n_queries]`` attention to the tokens looked at, and the
    ``first`` position's (or sink's) mean share of each head's attention ``[heads]``."""

    prompt: int
    layer: int
    relative: np.ndarray
    rates: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class _Head:
    """One head over all prompts; ``curve`` ``[n_queries]`` is the mean log2 of its relative attention, NaN where fewer
    than 6 prompts reach."""

    layer: int
    head: int
    decay: HeadDecay
    beginning: float
    first: float
    curve: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.head}"


def ask_attention_decay(run_dir: Path, options: QuestionOptions) -> Answer:
    """Follow each open head's attention from the response's content tokens to the content tokens of the last user turn,
    or to those that ``position`` or ``token`` name.

    A prompt counts once: its samples are averaged. Steered generations are left out.

    Raises:
        InputError: no such experiment, layer, head or token; nothing was opened; no response is long enough.
    """
    if options.position is not None and options.token is not None:
        raise InputError("give --position or --token, not both")
    run = open_run(run_dir)
    opened = _opened(run, options)
    read = [_read(run, asked, layer, options) for asked, layer in opened]
    known = [one for one in read if one is not None]
    if not known:
        raise InputError(
            f"run {run_dir}: no response has {LEAST_QUERIES} content tokens behind {_looked_at(options)}, so that no "
            "decay can be read; let the suite write longer responses, or choose another token"
        )
    heads = _heads(known, options)
    return Answer(
        kind="attention-decay",
        title=f"How attention to {_looked_at(options)} falls as the response grows",
        findings=_findings(heads),
        tables=(_table(heads),),
        panels=_panels(heads),
        values={"looked_at": _looked_at(options), "heads": [_described(head) for head in heads]},
    )


def _looked_at(options: QuestionOptions) -> str:
    if options.position is not None:
        return f"the token at position {options.position}"
    return "the user's last turn" if options.token is None else f"the token {options.token!r}"


def _opened(run: Run, options: QuestionOptions) -> list[tuple[Asked, int]]:
    """Every open layer with a stored pattern, once a generation."""
    rows = run.captures.filter(pl.col("kind") == "internals").collect().to_dicts()
    layers: dict[str, set[int]] = {}
    for row in rows:
        if "pattern" in (row["keep"] or ()):
            layers.setdefault(row["generation"], set()).update(row["layers"])
    done = set(run.generations.filter(pl.col("status") == "ok").collect()["generation"])
    asked = {entry.generation: entry for entry in asked_of(run, options)}
    found = [(asked[name], layer) for name in asked if name in done for layer in sorted(layers.get(name, ()))]
    if not found:
        raise InputError(
            f"run {run.title}: no attention patterns were kept; add to an experiment of the suite: "
            "capture: {internals: {layers: readout, keep: [pattern]}}"
        )
    return _in_layer(found, run, options.layer)


def _in_layer(found: list[tuple[Asked, int]], run: Run, layer: int | None) -> list[tuple[Asked, int]]:
    if layer is None:
        return found
    n_layers = 1 + max(int(name.rsplit(".", 1)[1]) for name in run.checkpoints)
    absolute = layer + n_layers if layer < 0 else layer
    there = sorted({own for _, own in found})
    if absolute not in there:
        raise InputError(f"--layer {layer}: was not opened in this run; open: {there}")
    return [(asked, own) for asked, own in found if own == absolute]


def _read(run: Run, asked: Asked, layer: int, options: QuestionOptions) -> _Read | None:
    """None where the response has too few tokens behind those looked at."""
    rows = run.tokens.filter(pl.col("generation") == asked.generation).sort("position").collect()
    tokens = _positions(rows, options)
    content = np.flatnonzero(content_mask(*(rows[name].to_list() for name in ("position", "phase", "role", "special"))))
    queries = content[content > tokens.max(initial=0)]
    if not len(tokens) or len(queries) < LEAST_QUERIES:
        return None
    pattern = run.internals(asked.generation, layer).pattern
    relative = relative_attention(pattern, tokens, queries)
    first = 1 - pattern[:, queries, 1:].sum(axis=-1).mean(axis=-1)
    return _Read(asked.prompt, layer, relative, decay_rates(relative, queries), first)


def _positions(rows: pl.DataFrame, options: QuestionOptions) -> np.ndarray:
    """Positions ``[n]`` of the tokens that are looked at; the first of a generation never is."""
    if options.position is not None:
        at = options.position + (len(rows) if options.position < 0 else 0)
        if at == 0:
            raise InputError("--position 0: attention to the first token is left out, as heads park there")
        return np.array([at] if 0 < at < len(rows) else [], dtype=int)
    if options.token is not None:
        chosen = (pl.col("phase") == "prompt") & (pl.col("token").str.strip_chars() == options.token.strip())
    else:
        turns = pl.col("turn") == rows.filter(pl.col("role") == "user")["turn"].max()
        chosen = (pl.col("role") == "user") & turns & ~pl.col("special")
        if rows.filter(chosen).is_empty():  # a base model's prompt has no turns
            chosen = (pl.col("phase") == "prompt") & ~pl.col("special")
    return rows.filter(chosen & (pl.col("position") > 0))["position"].to_numpy()


def _heads(read: Sequence[_Read], options: QuestionOptions) -> list[_Head]:
    """All heads that were read, as one family of tests."""
    by_layer: dict[int, dict[int, list[_Read]]] = {}
    for one in read:
        by_layer.setdefault(one.layer, {}).setdefault(one.prompt, []).append(one)
    prompts = sorted({one.prompt for one in read})
    heads, columns = [], []
    for layer, of_prompt in sorted(by_layer.items()):
        for head in _chosen_heads(layer, next(iter(of_prompt.values()))[0], options.head):
            heads.append((layer, head))
            columns.append([_mean([one.rates[head] for one in of_prompt.get(prompt, ())]) for prompt in prompts])
    decays = heads_decay(np.array(columns).T, seed=options.seed)
    return [_head(layer, head, decay, by_layer[layer]) for (layer, head), decay in zip(heads, decays, strict=True)]


def _chosen_heads(layer: int, read: _Read, head: int | None) -> Sequence[int]:
    n_heads = len(read.rates)
    if head is None:
        return range(n_heads)
    if not -n_heads <= head < n_heads:
        raise InputError(f"--head {head}: layer {layer} has heads 0 to {n_heads - 1}")
    return [head % n_heads]


def _head(layer: int, head: int, decay: HeadDecay, of_prompt: Mapping[int, Sequence[_Read]]) -> _Head:
    longest = max(one.relative.shape[1] for read in of_prompt.values() for one in read)
    logs = np.stack([_finite_means(_logs(read, head, longest)) for read in of_prompt.values()])
    enough = np.isfinite(logs).sum(axis=0) >= min(LEAST_PROMPTS, len(of_prompt))
    curve = np.where(enough, _finite_means(logs), np.nan)
    return _Head(
        layer,
        head,
        decay,
        beginning=float(2 ** _mean(curve[:_BEGINNING])),
        first=_mean([_mean([one.first[head] for one in read]) for read in of_prompt.values()]),
        curve=curve,
    )


def _logs(samples: Sequence[_Read], head: int, length: int) -> np.ndarray:
    """``[n_samples, length]``: log2 of a head's relative attention, NaN where there is none."""
    found = np.full((len(samples), length), np.nan)
    for row, one in zip(found, samples, strict=True):
        row[: one.relative.shape[1]] = one.relative[head]
    return np.log2(np.where(found > 0, found, np.nan))


def _finite_means(rows: np.ndarray) -> np.ndarray:
    """Means ``[n]`` of what is finite in each column of ``rows`` ``[m, n]``; NaN where nothing is."""
    known = np.isfinite(rows).sum(axis=0)
    return np.where(known > 0, np.nansum(rows, axis=0) / np.maximum(known, 1), np.nan)


def _mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of what is finite; NaN if nothing is."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")


def _findings(heads: Sequence[_Head]) -> tuple[str, ...]:
    counts = {verdict: [head for head in heads if head.decay.verdict == verdict] for verdict in _VERDICTS}
    told = len(heads) - len(counts["inconclusive"])
    sentences = []
    if told:
        sentences.append(
            f"Of {told} heads, {len(counts['decays'])} decay faster than a head that looks everywhere alike, "
            f"{len(counts['grows'])} come to look more, {len(counts['no decay'])} show no decay once corrected for "
            "all heads: an infinite half-life cannot be excluded."
        )
    fastest = sorted(counts["decays"], key=lambda head: -head.decay.rate)[:_MOST_NAMED]
    if fastest:
        sentences.append(f"Fastest, by half-life in tokens: {'; '.join(_half_life_told(head) for head in fastest)}.")
    if untold := len(counts["inconclusive"]):
        sentences.append(
            f"{untold} of {len(heads)} heads are inconclusive: fewer than {LEAST_PROMPTS} prompts could be read for "
            f"them (a prompt is read where its response has {LEAST_QUERIES} content tokens that look at anything but "
            "the first position and have all the tokens looked at within a sliding window, where the layer has one)."
        )
    return tuple(sentences)


_VERDICTS = ("decays", "grows", "no decay", "inconclusive")


def _half_life_told(head: _Head) -> str:
    return f"head {head.name}, {_half_life(head.decay)}"


def _half_life(decay: HeadDecay) -> str | None:
    """A half-life with its interval; without decay, what it is at least."""
    shortest = decay.shortest_half_life
    if decay.half_life is not None:
        return f"{_tokens(decay.half_life)} [{_tokens(shortest)}, {_tokens(decay.longest_half_life)}]"
    if decay.verdict == "inconclusive" or shortest is None:
        return None
    return _tokens(shortest) if shortest > _LONGEST else f"≥ {_tokens(shortest)}"


def _tokens(count: float | None) -> str:
    """A number of tokens; None is infinity, and beyond a thousand all are as good as that."""
    if count is None or count > _LONGEST:
        return f"> {_LONGEST}"
    return f"{count:.1f}" if count < 10 else f"{count:.0f}"


def _table(heads: Sequence[_Head]) -> AnswerTable:
    return AnswerTable(
        title="Attention of each head, as a multiple of an even split over the visible tokens",
        columns=("head", "prompts", "on the first", "at the start", "half-life", "p", "verdict"),
        rows=tuple(_row(head) for head in heads),
        note=(
            "Head: layer.head. On the first: mean share of attention on the first position or a sink, which is "
            f"left out. At the start: relative attention of the response's first {_BEGINNING} tokens, 1 for an even "
            "split. Half-life: tokens, with its 95 % interval (bootstrap over prompts); ≥: no decay was shown, and "
            "none faster than this is in the interval. p: sign flips of prompts, corrected for all heads; where every "
            "head splits evenly, at most 5 % of runs show any head that decays or grows."
        ),
    )


def _row(head: _Head) -> tuple[Plain, ...]:
    decay = head.decay
    told = decay.verdict != "inconclusive"
    start = None if np.isnan(head.beginning) else f"{head.beginning:.2f}"
    p = ("<0.001" if decay.p < 0.001 else f"{decay.p:.3f}") if told else None
    return (head.name, decay.n_prompts, f"{head.first:.0%}", start, _half_life(decay), p, decay.verdict)


def _panels(heads: Sequence[_Head]) -> tuple[Panel, ...]:
    shown = [head for head in heads if np.isfinite(head.decay.rate)]
    if not shown:
        return ()
    return (
        Intervals(
            title="How fast attention falls beside an even split; above zero: it decays",
            axis="halvings per 100 tokens",
            dots=tuple(
                Dot(
                    head.name,
                    100 * head.decay.rate,
                    _hundred(head.decay.low),
                    _hundred(head.decay.high),
                    head.decay.verdict,
                )
                for head in shown
            ),
            references=(Reference(0.0, "an even split"),),
        ),
        _curves_panel(shown),
    )


def _hundred(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _curves_panel(heads: Sequence[_Head]) -> Curves:
    moving = [head for head in heads if head.decay.verdict in ("decays", "grows")] or list(heads)
    strongest = sorted(moving, key=lambda head: -abs(head.decay.rate))[:_MOST_CURVES]
    return Curves(
        title="Heads with the steepest course (a mean over prompts)",
        x_label="content tokens of the response",
        y_label="relative attention, log2",
        curves=tuple(
            Curve(f"{head.name} ({head.decay.verdict})", _numbers(len(head.curve)), tuple(head.curve.tolist()))
            for head in strongest
        ),
        references=(Reference(0.0, "an even split"),),
    )


def _numbers(n: int) -> tuple[float, ...]:
    return tuple(float(number) for number in range(n))


def _described(head: _Head) -> dict[str, Any]:
    return {
        "layer": head.layer,
        "head": head.head,
        **asdict(head.decay),
        "half_life": head.decay.half_life,
        "shortest_half_life": head.decay.shortest_half_life,
        "longest_half_life": head.decay.longest_half_life,
        "relative_attention_at_start": head.beginning,
        "share_of_first_position": head.first,
        "curve_log2": head.curve,
    }
