"""How far the plan's time, memory and disk are from what three different suites then take, on the embedded model.

Each run is a process of its own, behind one that times the model. Responses are kept from ending early, as the plan's
time says what a run takes if none does. Vectors are random, so that nothing is fitted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

SUBJECTS = ("rivers", "bread", "bicycles", "the moon", "violins", "glass", "ants", "salt", "wind", "maps")
TRAITS = 4


def suites(folder: Path, vectors: list[str]) -> list[Path]:
    """Many short prompts, few long ones with long responses, and samples."""
    short = [f"Tell me fact number {n} about {SUBJECTS[n % 10]}." for n in range(100)]
    long = [f"Here is a list: {' '.join(SUBJECTS * 30)}. What stands at place {n}?" for n in range(6)]
    sampled = [f"Write one line about {subject}." for subject in SUBJECTS]
    settings = {
        "short": (short, {"max_new_tokens": 20}),
        "long": (long, {"max_new_tokens": 100}),
        "samples": (sampled, {"max_new_tokens": 50, "temperature": 1.0, "samples": 6}),
    }
    paths = []
    for name, (prompts, generation) in settings.items():
        path = folder / f"{name}.yaml"
        experiments = [{"name": name, "prompts": prompts}]
        path.write_text(
            yaml.safe_dump({"name": name, "traits": vectors, "generation": generation, "experiments": experiments})
        )
        paths.append(path)
    return paths


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = run_child("vectors", str(folder), str(TRAITS))
        paths = suites(folder, made)
        run_child("time", str(paths[0]), str(folder / "first"))
        print("| suite | | planned | took | off by |\n|---|---|---|---|---|")
        for path in paths:
            planned = run_child("plan", str(path))
            took = run_child("run", str(path), str(folder / "runs"))
            for what, unit in (("seconds", 1.0), ("memory_bytes", 1e9), ("disk_bytes", 1e6)):
                before, after = planned[what] / unit, took[what] / unit
                label = {"seconds": "s", "memory_bytes": "GB", "disk_bytes": "MB"}[what]
                print(f"| {path.stem} | {label} | {before:.2f} | {after:.2f} | {before / after - 1:+.0%} |", flush=True)


def run_child(*arguments: str):
    """What one step prints, in a process of its own."""
    finished = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE)
    return json.loads(finished.stdout.splitlines()[-1])


def child(step: str, *arguments: str) -> None:
    from dataclasses import replace

    from traitscope.bench.vectors import write_random_vectors
    from traitscope.captures.summaries import run_summary
    from traitscope.model.loading import load_model
    from traitscope.run.describe_plan import describe_plan
    from traitscope.run.night import start_run
    from traitscope.run.prepare import prepare
    from traitscope.run.progress import default_reporter
    from traitscope.suite.file import load_suite

    if step == "vectors":
        paths = write_random_vectors(load_model(device="cpu"), int(arguments[1]), Path(arguments[0]))
        print(json.dumps([str(path) for path in paths]))
        return
    prepared = prepare(load_suite(arguments[0]), device="cpu")
    if step == "plan":
        print(json.dumps(describe_plan(prepared, None, Path("runs"))["estimate"]))
        return
    # An ordinary run times the model, if it never was; that it loads the model itself is part of what is remembered.
    model = None if step == "time" else replace(load_model(device="cpu"), eos_token_ids=frozenset())
    run_dir = start_run(
        prepared,
        out=Path(arguments[1]),
        batch_size=None,
        shard_size=None,
        allow_foreign=False,
        reporter=default_reporter(),
        model=model,
    )
    cost = run_summary(run_dir)["cost"]
    print(
        json.dumps(
            {
                "seconds": cost["seconds"]["generating"],
                "memory_bytes": cost["peak_memory_bytes"],
                "disk_bytes": cost["disk_bytes"],
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(*sys.argv[1:])
    else:
        main()
