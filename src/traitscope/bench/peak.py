"""One contender in a process of its own, for the peak of its memory: ``python -m traitscope.bench.peak JOB.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from traitscope.bench.child_suite import prepared_of
from traitscope.bench.contenders import Grouping, batched_generate, ours
from traitscope.bench.workload import workload_of
from traitscope.memory import peak_resident_bytes
from traitscope.model.loading import load_source


def main(job_file: str) -> None:
    """Do the whole workload as ``job["contender"]`` (d, e or f) does; report bytes of memory and of device memory."""
    job = json.loads(Path(job_file).read_text())
    prepared = prepared_of(job)
    model = load_source(prepared.source, device=job["device"], dtype=job["dtype"])
    workload = workload_of(prepared, model)
    n_whole = len(workload.tasks)
    if job["contender"] == "f":
        batched_generate(model, workload.tasks, Grouping(**job["grouping"]), n_whole=n_whole)
    else:
        bank = workload.bank if job["contender"] == "d" else None
        ours(model, workload.tasks, job["batch_size"], bank=bank, n_whole=n_whole)
    on_device = torch.cuda.max_memory_allocated() if model.device.type == "cuda" else None
    Path(job["report"]).write_text(json.dumps({"peak_bytes": peak_resident_bytes(), "device_bytes": on_device}))


if __name__ == "__main__":
    main(sys.argv[1])
