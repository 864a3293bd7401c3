"""traitscope as one process, for the bench: ``python -m traitscope.bench.ours JOB.json`` writes ``job["report"]``.

It does what ``traitscope run`` does; with ``job["equal_lengths"]``, no end-of-sequence token ends a response.
"""

from __future__ import annotations

import gc
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def main(job_file: str) -> None:
    """Run the job's suite; the report names the run, its batch width, seconds by kind and bytes of peak memory."""
    job = json.loads(Path(job_file).read_text())
    gc.disable()  # as the command line does while it imports
    from rich.console import Console

    from traitscope.bench.child_suite import prepared_of
    from traitscope.memory import peak_resident_bytes
    from traitscope.model.loading import load_source
    from traitscope.run.night import start_run
    from traitscope.run.progress import Reporter

    gc.enable()
    seconds = {"import": time.time() - job["started"]}
    started = time.perf_counter()
    prepared = prepared_of(job)
    seconds["plan"] = time.perf_counter() - started
    started = time.perf_counter()
    model = None
    if job["equal_lengths"]:
        loaded = load_source(prepared.source, device=job["device"], dtype=job["dtype"])
        model = replace(loaded, eos_token_ids=frozenset())
    seconds["load"] = time.perf_counter() - started
    run_dir = start_run(
        prepared,
        out=Path(job["out"]),
        batch_size=job["batch_size"],
        shard_size=None,
        allow_foreign=False,
        reporter=Reporter(Console(file=io.StringIO())),
        model=model,
    )
    report = {
        "run": str(run_dir),
        "batch_width": _json(run_dir / "plan.json")["batch_width"],
        "seconds": seconds | _json(run_dir / "run.json")["sessions"][-1]["seconds"],
        "peak_bytes": peak_resident_bytes(),
    }
    Path(job["report"]).write_text(json.dumps(report))


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


if __name__ == "__main__":
    main(sys.argv[1])
