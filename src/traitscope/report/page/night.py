"""Did it work? What the page says of the night before it shows what was found."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from traitscope.captures.files import read_frozen_plan, read_sessions
from traitscope.captures.reading import capture_label
from traitscope.report.page.prompts import visible
from traitscope.report.terminal import procedure
from traitscope.report.text import one_line, precision_of
from traitscope.report.verification import conclusion
from traitscope.units import human_bytes, human_seconds

_MOST_PROBLEMS = 200
_KINDS = {
    "loading": "loading the model",
    "fitting": "fitting trait vectors",
    "timing": "timing the model",
    "generating": "generating, with capture",
    "writing": "writing (beside the next shard)",
    "verifying": "verifying",
    "splitting": "splitting open layers",
}


def described_night(run_dir: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The first section of the page, as plain values."""
    plan, cost, old = read_frozen_plan(run_dir), summary["cost"], summary["old_procedure"]
    path = shlex.quote(str(run_dir))
    precision = precision_of(plan["dtype"], plan["model"]["quantization"])
    counts = {kind: summary["counts"].get(kind, 0) for kind in ("ok", "failed", "too_long", "missing")}
    return {
        "suite": plan["suite"]["name"],
        "run": run_dir.name,
        "path": path,
        "captured": counts["ok"],
        "created": plan["created"].replace("T", " ").removesuffix("+00:00"),
        "model": f"{plan['model']['name']}, {precision} on {', '.join(plan['devices'])}",
        "fingerprint": plan["model"]["fingerprint"],
        "versions": ", ".join(f"{name} {version}" for name, version in plan["versions"].items()),
        "verdict": _verdict(counts, summary["verify"]),
        "headline": _headline(counts, summary["verify"]),
        "tiles": _tiles(counts, cost),
        "problems": _problems(summary["captures"]),
        "n_more_problems": max(0, counts["failed"] + counts["too_long"] - _MOST_PROBLEMS),
        "resume": f"traitscope run --resume {path}" if counts["missing"] else None,
        "retry": f"traitscope run --resume {path} --retry-failed" if counts["failed"] else None,
        "times": _times(cost["seconds"]),
        "utilisation": cost["utilisation"],
        "verify": _verify(summary["verify"]),
        "expectations": [_expectation(expected) for expected in summary["expectations"]],
        "expected": _expected(summary["expectations"]),
        "old": f"The old procedure: {procedure(old)}; here {procedure(old['here'])}.",
        "sessions": [f"{session['began']}: {session['ended_by']}" for session in read_sessions(run_dir)],
    }


def _verdict(counts: Mapping[str, int], verify: Mapping[str, Any] | None) -> str:
    if counts["missing"]:
        return "unfinished"
    wrong = counts["failed"] or counts["too_long"] or (verify is not None and not verify["passed"])
    return "problems" if wrong else "worked"


def _headline(counts: Mapping[str, int], verify: Mapping[str, Any] | None) -> str:
    total = sum(counts.values())
    begin = "Everything was captured" if counts["ok"] == total else f"{counts['ok']} of {total} captures are there"
    parts = [
        f"{counts[kind]} {what}"
        for kind, what in (("failed", "failed"), ("too_long", "too long"), ("missing", "not made yet"))
        if counts[kind]
    ]
    line = begin + (f": {', '.join(parts)}" if parts else "")
    if verify is None:
        return f"{line}; nothing was verified yet."
    if not verify["passed"]:
        return f"{line}; verifying found {len(verify['problems'])} problems."
    return f"{line}, and {verify['verified']} replayed generations proved right."


def _tiles(counts: Mapping[str, int], cost: Mapping[str, Any]) -> list[dict[str, str]]:
    total, n_sessions = sum(counts.values()), cost["sessions"]
    estimated = cost["estimated_seconds"]
    tiles = [
        ("captures", f"{counts['ok']} of {total}", f"{counts['failed']} failed, {counts['too_long']} too long"),
        ("model loads", str(cost["model_loads"]), f"in {n_sessions} session{'s' if n_sessions != 1 else ''}"),
        (
            "generation",
            human_seconds(cost["seconds"].get("generating", 0.0)),
            "no estimate" if estimated is None else f"{human_seconds(estimated)} was planned",
        ),
        (
            "peak memory",
            "–" if not cost["peak_memory_bytes"] else human_bytes(cost["peak_memory_bytes"]),
            f"{human_bytes(cost['estimated_memory_bytes'])} was planned",
        ),
        ("disk", human_bytes(cost["disk_bytes"]), f"{human_bytes(cost['estimated_disk_bytes'])} was planned"),
        ("shards", f"{cost['committed_shards']} of {cost['shards']}", "committed"),
    ]
    return [{"name": name, "value": value, "note": note} for name, value, note in tiles]


def _problems(captures: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    wrong = [capture for capture in captures if capture["status"] in ("failed", "too_long")]
    return [
        {
            "label": visible(capture_label(capture)),
            "status": capture["status"].replace("_", " "),
            "error": visible(one_line(capture["error"] or "")),
            "prompt": visible(capture["prompt"])[:120],
        }
        for capture in wrong[:_MOST_PROBLEMS]
    ]


def _times(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    total = sum(seconds.values())
    return [
        {"name": _KINDS.get(kind, kind), "time": human_seconds(spent), "share": round(100 * spent / total, 1)}
        for kind, spent in seconds.items()
        if total and spent >= 0.0005
    ]


def _verify(verify: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if verify is None:
        return None
    return {
        "passed": verify["passed"],
        "conclusion": conclusion(verify),
        "problems": [one_line(problem) for problem in verify["problems"][:20]],
        "worst": [
            {
                "quantity": f"{worst['quantity']} at {worst['site']}",
                "difference": "not finite" if worst["difference"] is None else f"{worst['difference']:.1e}",
                "limit": f"{worst['limit']:.1e}",
            }
            for worst in verify["worst"]
        ],
    }


def _expected(expectations: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(expected["verdict"] for expected in expectations).most_common()
    return f"Of {len(expectations)}: {', '.join(f'{count} {verdict}' for verdict, count in counts)}."


def _expectation(expected: Mapping[str, Any]) -> dict[str, Any]:
    dose = "" if expected["alpha"] is None else f" at α {expected['alpha']:+g}"
    found = "nothing captured" if expected["mean_z"] is None else f"{expected['mean_z']:+.2f}"
    if expected["interval"] is not None:
        low, high = expected["interval"]
        found += f" ({low:+.2f} to {high:+.2f})"
    return {**expected, "experiment": expected["experiment"] + dose, "found": found}
