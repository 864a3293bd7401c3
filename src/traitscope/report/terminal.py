"""The tables that a person reads when a command is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from traitscope.report.results import expectations_table, results_tables
from traitscope.report.text import precision_of
from traitscope.report.verification import print_conclusion
from traitscope.units import human_bytes, human_seconds

_MOST_LISTED = 6


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """The results, what did not work, and what it cost."""
    for table in results_tables(summary, console.width):
        console.print(table)
    if summary["expectations"]:
        console.print(expectations_table(summary["expectations"]))
    for capture in summary["captures"]:
        if capture["status"] in ("failed", "too_long"):
            line = f"{capture['status']}: {capture['experiment']}/{capture['prompt_id']}: {capture['error']}"
            console.print(Text(line, style="red"), soft_wrap=True)
    if summary["verify"] is not None:
        print_conclusion(console, summary["verify"])
    for line in _cost_lines(summary):
        console.print(Text(line), soft_wrap=True)


def _estimated(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else human_seconds(seconds)


def _cost_lines(summary: Mapping[str, Any]) -> list[str]:
    counts, cost = summary["counts"], summary["cost"]
    n_captures = sum(counts.values())
    seconds = cost["seconds"]
    lines = [
        f"captured {counts.get('ok', 0)} of {n_captures}"
        f" ({counts.get('failed', 0)} failed, {counts.get('too_long', 0)} too long"
        + (f", {counts['missing']} still missing" if counts.get("missing") else "")
        + ")",
        f"model loads: {cost['model_loads']}" + (f" in {cost['sessions']} sessions" if cost["sessions"] > 1 else ""),
        "time: "
        + ", ".join(
            f"{kind} {human_seconds(seconds.get(kind, 0.0))}"
            for kind in ("loading", "fitting", "timing", "generating", "writing", "verifying", "splitting")
        ),
        f"generation took {_generating(cost)}, "
        f"{_estimated(cost['estimated_seconds'])} was estimated if no response ends early",
        f"disk: {human_bytes(cost['disk_bytes'])}, {human_bytes(cost['estimated_disk_bytes'])} was estimated",
    ]
    if cost["peak_memory_bytes"]:
        lines.append(
            f"peak memory: {human_bytes(cost['peak_memory_bytes'])}, "
            f"{human_bytes(cost['estimated_memory_bytes'])} was estimated"
        )
    lines += _opened_lines(summary["captures"])
    lines += _utilisation_lines(cost["utilisation"])
    old = summary["old_procedure"]
    lines.append(f"the old procedure: {procedure(old)}; here {procedure(old['here'])}")
    return [*lines, f"run directory: {summary['run']}"]


def _generating(cost: Mapping[str, Any]) -> str:
    spent = human_seconds(cost["seconds"].get("generating", 0.0))
    if cost["workers"] == 1:
        return spent
    return f"{spent} of {cost['workers']} workers, {human_seconds(cost['generating_wall_seconds'])} by the clock"


def procedure(cost: Mapping[str, int]) -> str:
    """Loads, generations and token-forwards of a way of working."""
    counted = {"model load": cost["model_loads"], "generation": cost["generations"]}
    counts = [f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in counted.items()]
    return ", ".join([*counts, f"{cost['token_forwards']:,} token-forwards"])


def _opened_lines(captures: Sequence[Mapping[str, Any]]) -> list[str]:
    opened = [capture for capture in captures if capture["kind"] == "internals" and capture["status"] == "ok"]
    if not opened:
        return []
    layers = sorted({layer for capture in opened for layer in capture["layers"]})
    n_generations = len({capture["generation"] for capture in opened})
    listed = ", ".join(map(str, layers)) if len(layers) <= _MOST_LISTED else f"{layers[0]} to {layers[-1]}"
    return [
        f"open layers: {n_generations} generation{'s' if n_generations > 1 else ''}, "
        f"layer{'s' if len(layers) > 1 else ''} {listed}; read them with "
        "traitscope.open_run(…).internals(generation, layer)"
    ]


def _utilisation_lines(used: Mapping[str, Any] | None) -> list[str]:
    if used is None:
        return []
    return [
        f"{used['tokens_per_second']:.0f} tokens/s, {used['forward_share']:.0%} of the time in forward passes; in them "
        f"{human_bytes(used['weight_bytes_per_second'])}/s of weights ({used['of_copy']:.0%} of a large copy) and "
        f"{used['flops_per_second'] / 1e9:.0f} GFLOP/s ({used['of_matrix']:.0%} of a large matrix product); "
        f"{human_bytes(used['memory_bytes'])} of {human_bytes(used['memory_there_bytes'])} memory",
        f"advice: {used['advice']}",
    ]


def print_plan(console: Console, described: Mapping[str, Any]) -> None:
    """A plan's counts and costs."""
    sizes, old = described["bytes"], described["old_procedure"]
    precision = precision_of(described["dtype"], described["quantization"])
    rows: Sequence[tuple[str, str]] = [
        ("model", f"{described['model']}, {precision} on {_devices(described['devices'])}"),
        ("prompts", described["template"]),
        ("experiments", str(described["experiments"])),
        ("captures asked for", str(described["captures"])),
        ("distinct generations", _generations_cell(described)),
        ("traits", ", ".join(described["traits"]) or "none"),
        ("checkpoints", f"{described['checkpoints']} (fewer where a block has no resid_mid)"),
        (
            "tokens",
            f"{described['prompt_tokens']} of prompts, at most {described['most_response_tokens']} of responses",
        ),
        ("batch width", str(described["batch_width"])),
        (
            "memory",
            f"weights {human_bytes(sizes['weights'])}, cache at most {human_bytes(sizes['cache'])}, "
            f"scores of a batch {human_bytes(sizes['scores'])}, in all about {human_bytes(sizes['peak'])}"
            + (" for each worker" if len(described["devices"]) > 1 else ""),
        ),
        ("disk", _disk_cell(sizes)),
        ("time", _time_cell(described)),
        *((f"  with {case['what']}", _what_if_cell(case, described["at_once"])) for case in described["what_ifs"]),
        (
            "the old procedure",
            f"{procedure(old)}; here {_loads(described['devices'])}, {described['token_forwards']:,} token-forwards",
        ),
    ]
    table = Table(title=f"Plan of {described['suite']}", show_header=False)
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)


def _disk_cell(sizes: Mapping[str, int]) -> str:
    opened = f", {human_bytes(sizes['internals'])} of it open layers" if sizes["internals"] else ""
    return f"at most about {human_bytes(sizes['disk'])}{opened}"


def _devices(devices: Sequence[str]) -> str:
    return devices[0] if len(devices) == 1 else f"{', '.join(devices)} ({len(devices)} workers)"


def _loads(devices: Sequence[str]) -> str:
    """Of several workers each loads the model, after the process that prepares the run."""
    return "1 load" if len(devices) == 1 else f"{1 + len(devices)} loads"


def _time_cell(described: Mapping[str, Any]) -> str:
    estimate, at_once = described["estimate"], described["at_once"]
    if estimate["seconds"] is None:
        low, high = (seconds / at_once for seconds in described["seconds_range"])
        return (
            f"{human_seconds(low)} to {human_seconds(high)} of generation "
            "(a guess from this machine's matrix products; the first run times the model)"
        )
    generating = estimate["seconds"] / at_once
    other = estimate["total_seconds"] - estimate["seconds"]
    return (
        f"{human_seconds(generating)} of generation if no response ends early, "
        f"{human_seconds(generating + other)} with loading and splitting open layers "
        "(from this model's pace on this machine)"
    )


def _what_if_cell(case: Mapping[str, Any], at_once: int) -> str:
    costs = [f"memory {human_bytes(case['memory_bytes'])}", f"disk {human_bytes(case['disk_bytes'])}"]
    if case["seconds"] is not None:
        costs.insert(0, f"{human_seconds(case['seconds'] / at_once)} of generation")
    return ", ".join(costs)


def print_sizes(console: Console, described: Mapping[str, Any]) -> None:
    """What a model needs, from its configuration alone."""
    table = Table(title=f"Sizes of {described['model']}", show_header=False)
    rows = [
        ("parameters", f"{described['parameters']:,}"),
        ("layers, d_model", f"{described['layers']}, {described['d_model']}"),
        ("dtype", precision_of(described["dtype"], described["quantization"])),
        ("weights", human_bytes(described["weight_bytes"])),
        ("cache", f"{human_bytes(described['cache_bytes_per_token'])} per token of a row"),
        ("memory", human_bytes(described["memory_bytes"])),
    ]
    for row in described["rows"]:
        largest = row["largest_batch"]
        fits = f"largest batch {largest}" if largest else "no row fits beside the weights"
        rows.append((f"rows of {row['tokens']} tokens", f"cache {human_bytes(row['cache_bytes'])} a row, {fits}"))
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)


def _generations_cell(described: Mapping[str, Any]) -> str:
    too_long = described["too_long"]
    if not too_long:
        return str(described["generations"])
    return f"{described['generations']}, of which {len(too_long)} too long: {', '.join(too_long[:5])}"


def print_library(console: Console, described: Sequence[Mapping[str, Any]]) -> None:
    """The traits that come with traitscope."""
    table = Table(title="Traits of the library")
    for column in ("trait", "+", "−", "pairs (train / dev / test)"):
        table.add_column(column)
    for trait in described:
        counts = " / ".join(str(count) for count in trait["pairs"].values())
        table.add_row(trait["trait"], trait["positive"].split(":")[0], trait["negative"].split(":")[0], counts)
    console.print(table)


def print_fitted(console: Console, described: Sequence[Mapping[str, Any]]) -> None:
    """Vectors, with the evidence of the dev split beside them."""
    table = Table(
        title="Fitted vectors",
        caption="AUROC on the dev split at R, all / style-crossed pairs; the test split is left to traits validate.",
    )
    for column in ("trait", "R", "reader", "steerer", "verdict"):
        table.add_column(column)
    for trait in described:
        dev = trait["card"].get("dev", {})
        table.add_row(
            trait["trait"],
            trait["readout"],
            _auroc_cell(dev.get("reader")),
            _auroc_cell(dev.get("steerer")),
            trait["verdict"],
        )
    console.print(table)


def _auroc_cell(evidence: Mapping[str, Any] | None) -> str:
    if evidence is None:
        return "–"
    crossed = evidence.get("style_crossed_auroc")
    return f"{evidence['auroc']:.2f} / {crossed:.2f}" if crossed is not None else f"{evidence['auroc']:.2f}"


def print_nested(console: Console, described: Mapping[str, Any], indent: str = "") -> None:
    """Nested values, one a line."""
    for name, value in described.items():
        if isinstance(value, Mapping):
            console.print(Text(f"{indent}{name}:"))
            print_nested(console, value, indent + "  ")
        else:
            console.print(Text(f"{indent}{name}: {value}"), soft_wrap=True)
