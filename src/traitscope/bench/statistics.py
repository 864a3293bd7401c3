"""What is said of repeated timings: medians with their spread, paired ratios with an interval, and the wording."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 10_000


@dataclass(frozen=True)
class Spread:
    """The median, the smallest and the largest of ``n`` values."""

    median: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class PairedRatio:
    """The geometric mean of ``n`` paired ratios with its 95 % interval."""

    ratio: float
    low: float
    high: float
    n: int


def spread_of(values: Sequence[float]) -> Spread:
    """The spread of at least one value."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios_by_round(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios within each round, of the rounds that both sides took part in."""
    return spread_of([above / below for above, below in zip(numerators, denominators, strict=False)])


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> PairedRatio:
    """The mean of the paired log ratios, exponentiated, and its interval by a bootstrap over the pairs.

    The bootstrap's randomness is fixed, so that the same times give the same interval.
    """
    logs = np.log(np.asarray(numerators, dtype=np.float64)) - np.log(np.asarray(denominators, dtype=np.float64))
    drawn = np.random.default_rng(0).integers(0, len(logs), size=(_RESAMPLES, len(logs)))
    low, high = np.percentile(logs[drawn].mean(axis=1), [2.5, 97.5])
    return PairedRatio(float(np.exp(logs.mean())), float(np.exp(low)), float(np.exp(high)), len(logs))


def times_as_fast(ratio: float) -> str:
    """A ratio of speeds in words: ``2.3 times as fast (130 % more per hour)``.

    "230 % faster" would say another thing than "2.3 times as fast" and is never said.
    """
    shown = f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 20 else f"{ratio:,.0f}"
    rounded = float(shown.replace(",", ""))
    percent = round(abs(rounded - 1) * 100)
    return f"{shown} times as fast ({percent:,} % {'more' if rounded >= 1 else 'less'} per hour)"


def spread_sample(sizes: Sequence[int], count: int) -> list[int]:
    """Indices of ``count`` items spread over their sizes: the middle of each of ``count`` equal parts by size."""
    by_size = sorted(range(len(sizes)), key=lambda index: sizes[index])
    count = min(count, len(sizes))
    return [by_size[int((part + 0.5) * len(sizes) / count)] for part in range(count)]
