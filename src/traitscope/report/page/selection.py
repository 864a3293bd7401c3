"""Which prompts a page holds when it cannot hold all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from traitscope.captures.reading import capture_label
from traitscope.errors import InputError

MOST_PROMPTS = 120


@dataclass(frozen=True)
class Selection:
    """What a person asked of the page.

    Attributes:
        everything: hold every prompt, with every layer.
        patterns: hold the prompts whose id begins so, or whose ``experiment/prompt_id`` matches (``*`` and ``?``).
    """

    everything: bool = False
    patterns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Held:
    """Generations that the page holds, those that matter most first, and how many captured ones it leaves out."""

    generations: tuple[str, ...]
    left_out: int


def chosen(captures: Sequence[Mapping[str, Any]], selection: Selection, most: int = MOST_PROMPTS) -> Held:
    """Choose among the captures of a run's summary that have anything to show.

    Without a wish: one prompt of each experiment, the two extremes of each trait, what has open layers, then the
    others in the suite's order, ``most`` in all.

    Raises:
        InputError: a pattern fits no captured prompt.
    """
    shown = [capture for capture in captures if capture["status"] == "ok"]
    captured = tuple(dict.fromkeys(capture["generation"] for capture in shown))
    if selection.patterns:
        wanted = tuple(dict.fromkeys(g for pattern in selection.patterns for g in _fitting(shown, pattern)))
        return Held(wanted, len(captured) - len(wanted))
    ordered = tuple(dict.fromkeys([*_first_of_each(shown), *_extremes(shown), *_opened(shown), *captured]))
    held = ordered if selection.everything else ordered[:most]
    return Held(held, len(captured) - len(held))


def _fitting(captures: Sequence[Mapping[str, Any]], pattern: str) -> list[str]:
    found = [
        capture["generation"]
        for capture in captures
        if capture["generation"].startswith(pattern) or fnmatchcase(capture_label(capture), pattern)
    ]
    if not found:
        known = ", ".join(dict.fromkeys(capture_label(capture) for capture in captures[:3])) or "none"
        raise InputError(f"--select {pattern}: fits no captured prompt; there are, say: {known}")
    return found


def _first_of_each(captures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    seen = set()
    for capture in captures:
        if capture["experiment"] not in seen:
            seen.add(capture["experiment"])
            yield capture["generation"]


def _extremes(captures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for trait in dict.fromkeys(trait for capture in captures for trait in capture["mean_z"]):
        scored = [capture for capture in captures if capture["mean_z"].get(trait) is not None]
        if scored:
            yield max(scored, key=lambda capture: capture["mean_z"][trait])["generation"]
            yield min(scored, key=lambda capture: capture["mean_z"][trait])["generation"]


def _opened(captures: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (capture["generation"] for capture in captures if capture["kind"] == "internals")
