"""What open layers cost: the reference night with and without its four open layers, in turn, each in its own process.

``opening.py [ROUNDS]`` prints medians and ranges of the ratios, and the peak memory beside the plan's figure.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from traitscope.suite.file import built_in_suite_folder

WORK = ("generating", "writing", "verifying")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        suites = {"open": _suite(folder / "open", opened=True), "closed": _suite(folder / "closed", opened=False)}
        for suite in suites.values():
            _run(suite, folder)  # warm-up: files cached, vectors fitted, the model's pace remembered
        costs: dict[str, list[dict[str, Any]]] = {which: [] for which in suites}
        for number in range(rounds):
            order = list(suites) if number % 2 == 0 else list(reversed(suites))
            for which in order:
                costs[which].append(_run(suites[which], folder))
    _print(costs)


def _suite(folder: Path, *, opened: bool) -> Path:
    shutil.copytree(built_in_suite_folder("overnight"), folder)
    path = folder / "suite.yaml"
    suite = yaml.safe_load(path.read_text())
    if not opened:
        suite["experiments"] = [e for e in suite["experiments"] if "internals" not in e.get("capture", {})]
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


def _run(suite: Path, folder: Path) -> dict[str, Any]:
    command = ["run", str(suite), "--out", str(folder / "runs"), "--json"]
    finished = subprocess.run([sys.executable, "-m", "traitscope", *command], check=True, stdout=subprocess.PIPE)
    return json.loads(finished.stdout)["cost"]


def _print(costs: dict[str, list[dict[str, Any]]]) -> None:
    pairs = list(zip(costs["open"], costs["closed"], strict=True))
    for what, kinds in (("generating (opening included)", WORK[:1]), ("all work after the start", WORK)):
        ratios = [_seconds(opened, kinds) / _seconds(closed, kinds) for opened, closed in pairs]
        medians = [statistics.median(_seconds(cost, kinds) for cost in costs[which]) for which in ("closed", "open")]
        print(
            f"{what}: closed {medians[0]:.2f} s, open {medians[1]:.2f} s, ratio of a round "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} rounds)"
        )
    for which, found in costs.items():
        peaks = [cost["peak_memory_bytes"] / cost["estimated_memory_bytes"] for cost in found]
        disks = [cost["disk_bytes"] / cost["estimated_disk_bytes"] for cost in found]
        peak = statistics.median(cost["peak_memory_bytes"] for cost in found)
        print(
            f"{which}: peak memory {peak / 1e9:.3f} GB, {statistics.median(peaks):.3f} of the plan's "
            f"({min(peaks):.3f} to {max(peaks):.3f}); disk {statistics.median(disks):.3f} of the plan's"
        )


def _seconds(cost: dict[str, Any], kinds: tuple[str, ...]) -> float:
    return sum(cost["seconds"].get(kind, 0.0) for kind in kinds)


if __name__ == "__main__":
    main()
