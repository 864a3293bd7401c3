"""What a report costs: its share of the run, its size, and how long a browser takes to open it.

    python benchmarks/report.py [--prompts 500] [--out runs]

Runs the reference night and a suite of many prompts (all traits of the library, 50 tokens each), then opens both
reports in the machine's Chromium. Needs the extra ``dev``.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from playwright.sync_api import sync_playwright

from traitscope.captures.files import read_sessions
from traitscope.traits.scenarios import library_names, load_scenarios
from traitscope.traits.store import find_trait

_OPENINGS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for suite in ("overnight", str(_large_suite(Path(folder), options.prompts))):
            print(json.dumps(_measured(suite, options.out), indent=1), flush=True)


def _large_suite(folder: Path, n_prompts: int) -> Path:
    """Distinct prompts of the library's training pairs, one experiment a trait."""
    per_trait = -(-n_prompts // len(library_names()))
    experiments = []
    for name in library_names():
        pairs = load_scenarios(find_trait(name, Path()).path).splits.train
        experiments.append({"name": name, "prompts": list(dict.fromkeys(pair.prompt for pair in pairs))[:per_trait]})
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"name": "large", "traits": list(library_names()), "experiments": experiments}))
    return path


def _measured(suite: str, out: Path) -> dict[str, object]:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "traitscope", "run", suite, "--out", str(out)],
        capture_output=True,
        text=True,
        check=True,
    )
    whole = time.perf_counter() - started
    said = re.search(r"report: (.+) \(.*written in (.+)\)", done.stderr)
    assert said is not None
    path = Path(said[1]).absolute()
    return {
        "suite": path.parent.name,
        "run_seconds": round(whole, 1),
        "sessions": [session["seconds"] for session in read_sessions(path.parent)],
        "report_written_in": said[2],
        "megabytes": round(path.stat().st_size / 1e6, 2),
        "opening_seconds": _opening_seconds(path),
    }


def _opening_seconds(path: Path) -> dict[str, float]:
    """Median seconds from asking for the page until its text is there, and until its first charts are drawn."""
    seen: dict[str, list[float]] = {"text": [], "ready": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(_OPENINGS):
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            started = time.perf_counter()
            page.goto(path.as_uri(), wait_until="domcontentloaded")
            seen["text"].append(time.perf_counter() - started)
            page.wait_for_selector("body[data-ready]")
            seen["ready"].append(time.perf_counter() - started)
            page.context.close()
        browser.close()
    return {name: round(statistics.median(times), 2) for name, times in seen.items()}


if __name__ == "__main__":
    main()
