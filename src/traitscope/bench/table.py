"""What a person reads of a bench: contenders, comparisons in words, and what was extrapolated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traitscope.units import human_bytes, human_seconds


def print_bench(console: Console, result: Mapping[str, Any]) -> None:
    """The contenders, the comparisons, then one line for each thing to know about them."""
    console.print(_contender_table(result))
    console.print(_comparison_table(result))
    for line in (*_capture_lines(result), *_notes(result)):
        console.print(Text(line), soft_wrap=True)


def _contender_table(result: Mapping[str, Any]) -> Table:
    work = result["workload"]
    table = Table(
        title=f"{work['name']}: {work['generations']} responses of {work['max_new_tokens']} tokens, "
        f"{work['traits']} traits, {work['captures']} captures; {result['model']}"
    )
    table.add_column("contender")
    for name in ("whole workload", "spread", "rounds", "captures\nper hour", "tokens\nper second", "peak\nmemory"):
        table.add_column(name, justify="right")
    for contender in result["contenders"]:
        table.add_row(*_cells(contender))
    return table


def _cells(contender: Mapping[str, Any]) -> tuple[str, ...]:
    seconds = contender["workload_seconds"]
    mark = "*" if contender["extrapolated"] else ""
    per_hour, peak = contender["captures_per_hour"], contender["peak_bytes"]
    return (
        contender["name"],
        human_seconds(seconds["median"]) + mark,
        f"{human_seconds(seconds['low'])} – {human_seconds(seconds['high'])}" if seconds["n"] > 1 else "one round",
        str(seconds["n"]),
        "–" if per_hour is None else f"{per_hour:,.0f}{mark}",
        f"{contender['tokens_per_second']:,.1f}",
        "–" if peak is None else human_bytes(peak),
    )


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    machine = result["machine"]
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] != 1 else "")
    yield (
        f"measured on {machine['cpu']}, {threads}, {human_bytes(machine['memory_bytes'])} of memory; "
        f"{machine['device']}, {machine['dtype']}; torch {machine['versions']['torch']}, "
        f"transformers {machine['versions']['transformers']}"
    )
    yield (
        "times are medians, their spread is from the fastest to the slowest round; traits are random unit vectors, as "
        "only time is measured"
    )
    sampled = [f"{c['name']} from {_units(c)}" for c in result["contenders"] if c["extrapolated"]]
    if sampled:
        yield f"* extrapolated from a sample: {', '.join(sampled)}"
    for contender in result["contenders"]:
        if contender["key"] == "a":
            parts = ", ".join(f"{part} {human_seconds(seconds)}" for part, seconds in contender["parts"].items())
            yield f"one process of the old way: {parts}"
    grouping, tried = result["generate"]["grouping"], result["generate"]["tried"]
    order = "sorted by length" if grouping["by_length"] else "in file order"
    best = f", the fastest of {len(tried)} groupings" if tried else ""
    yield f"batches: traitscope at most {result['batch_width']} wide; generate {grouping['width']}, {order}{best}"


def _units(contender: Mapping[str, Any]) -> str:
    one, many = ("process", "processes") if contender["key"] == "a" else ("prompt", "prompts")
    return f"{contender['units']} {one if contender['units'] == 1 else many}"


def _comparison_table(result: Mapping[str, Any]) -> Table:
    names = {contender["key"]: contender["name"] for contender in result["contenders"]}
    table = Table(title="Compared within each round")
    for name in ("", "against", "speed"):
        table.add_column(name, no_wrap=name == "speed")
    for name in ("time ratio", "spread"):
        table.add_column(name, justify="right")
    for comparison in result["comparisons"]:
        ratio = comparison["time_ratio"]
        mark = "*" if comparison["extrapolated"] else ""
        table.add_row(
            names[comparison["of"]],
            names[comparison["to"]],
            comparison["words"] + mark,
            _ratio(ratio["median"]) + mark,
            f"{_ratio(ratio['low'])} – {_ratio(ratio['high'])}" if ratio["n"] > 1 else "one round",
        )
    return table


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value >= 0.1 else f"{value:.2g}"


def _capture_lines(result: Mapping[str, Any]) -> Iterator[str]:
    for cost in result["capture_cost"]:
        steps = cost["steps"]
        yield (
            f"capture at batch {cost['batch']}: a step takes {steps['ratio']:.3f} of one without "
            f"(95 % interval {steps['low']:.3f} to {steps['high']:.3f}, {steps['n']} pairs of steps)"
        )
    peaks = {c["key"]: c["peak_bytes"] for c in result["contenders"]}
    if peaks.get("d") and peaks.get("e"):
        yield f"capture's peak memory: {peaks['d'] / peaks['e']:.3f} of that without"
