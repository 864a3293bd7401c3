"""Small nights on a tiny saved model, for the tests of the run room."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console

from device import DEVICE
from tiny_models import SCENARIOS
from traitscope.captures.files import committed_shards, internals_file, shard_file
from traitscope.captures.schema import SHARD_TABLES
from traitscope.run.night import start_run
from traitscope.run.prepare import prepare
from traitscope.run.progress import Reporter
from traitscope.run.tracking import Tracking
from traitscope.suite.file import load_suite

WORDS = ["sun", "rain", "stone", "river", "cloud", "moss"]


def write_suite(folder: Path, model: Path, *, n_prompts: int = 24, **more: Any) -> Path:
    """A suite of experiments that share prompts: greedy, of which some again and some with open layers, and sampled."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = [f"{WORDS[n % 6]} number {n} " + "x" * (n % 7 + 1) for n in range(n_prompts)]
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    suite = {
        "name": "small",
        "model": str(model),
        "traits": [str(SCENARIOS)],
        "generation": {"max_new_tokens": 12},
        "experiments": [
            {"name": "greedy", "prompts": "prompts.txt"},
            {"name": "again", "prompts": prompts[:3], "capture": {"scores": {"layers": "readout"}}},
            {"name": "opened", "prompts": prompts[2:9:3], "capture": {"internals": {"layers": [0, -1]}}},
            {"name": "sampled", "prompts": prompts[:4], "generation": {"temperature": 1.0, "samples": 2}},
        ],
        **more,
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def quiet() -> Reporter:
    return Reporter(Console(file=io.StringIO()))


def run_suite(
    suite: Path,
    out: Path,
    *,
    batch_size: int | None = 2,
    shard_size: int | None = 2,
    tracking: Tracking | None = None,
    reporter: Reporter | None = None,
) -> Path:
    prepared = prepare(load_suite(str(suite)), device=DEVICE)
    return start_run(
        prepared,
        out=out,
        batch_size=batch_size,
        shard_size=shard_size,
        allow_foreign=False,
        reporter=reporter or quiet(),
        tracking=tracking,
    )


def tables_digest(run_dir: Path) -> dict[str, str]:
    """A digest of every file of every committed shard, timings left out."""
    digests = {}
    for shard in committed_shards(run_dir):
        for table in SHARD_TABLES:
            path = shard_file(run_dir, shard, table)
            if table == "generations":
                content = str(pq.read_table(path).drop_columns(["seconds"]).to_pylist()).encode()
            else:
                content = path.read_bytes()
            digests[path.name] = hashlib.sha256(content).hexdigest()
        opened = internals_file(run_dir, shard)
        if opened.is_file():
            digests[opened.name] = hashlib.sha256(opened.read_bytes()).hexdigest()
    return digests


def failing(real: Callable[..., Any], error: BaseException, after: int) -> Callable[..., Any]:
    """``real``, which raises ``error`` from call number ``after`` on."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise error
        return real(*args, **kwargs)

    return call
