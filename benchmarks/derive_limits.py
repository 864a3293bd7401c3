"""Derives ``src/traitscope/verify/limits.json`` and the table of docs/verify.md from clean runs.

``derive_limits.py GEMMA [--keep FOLDER]``: GEMMA is the GGUF file of Gemma 3 270M. The other models are the
embedded one, a random Qwen3 of 12 layers, and the tiny random architectures of the tests. Gemma is left out where
weights are quantised anew. ``derive_limits.py --only SET [--widen]`` derives one set and leaves the others alone.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import torch
import transformers
import yaml
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from random_traits import random_vectors
from tiny_models import CONFIGS, VOCAB, tiny_model, tiny_tokenizer
from traitscope.checkpoints import Checkpoint
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run import night, tables
from traitscope.run.prepare import prepare
from traitscope.run.progress import Reporter
from traitscope.suite.file import load_suite
from traitscope.traits.vectors import load_vectors, save_vectors
from traitscope.verify.comparison import differences
from traitscope.verify.independent import independent_pass
from traitscope.verify.limits import cell_of
from traitscope.verify.stored import check_stored

LIMITS = Path(__file__).parent.parent / "src" / "traitscope" / "verify" / "limits.json"
PRECISIONS = {"float32": [("float32", None)], "bfloat16": [("bfloat16", None)]}
"""Of each set of limits: the dtypes and the kinds of quantised weights that it is measured in."""
PRECISIONS["bnb-8bit"] = [("float32", "bnb-8bit"), ("bfloat16", "bnb-8bit")]
PERCENTILE = 0.999
SHARE = 0.01
LOGIT = "logit"
"""The error of the log-probability in standard deviations of the logits, for the limit of argmax."""
N_TOKENS = 40
N_TRAITS = 4
QUESTIONS = (
    "Hi",
    "Why?",
    "What is the capital of France?",
    "Write a poem about the sea.",
    "Name three rivers and say where each of them ends.",
    "Tell me definitively: is the earth round or flat? Give reasons that a child of six years understands.",
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("gemma", type=Path, nargs="?")
    arguments.add_argument("--keep", type=Path, help="Where every single difference is kept, and found again.")
    arguments.add_argument("--only", choices=PRECISIONS, help="Derive this set and leave the others as they stand.")
    arguments.add_argument("--widen", action="store_true", help="Keep what stands where it is larger.")
    arguments.add_argument("--models", nargs="+", help="With --only: these models and no others.")
    given = arguments.parse_args()
    if given.gemma is None and given.only is None:
        arguments.error("without --only, the file of Gemma is needed")
    transformers.utils.logging.disable_progress_bar()
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, location in models(given.gemma, Path(folder)):
            if given.models and name not in given.models:
                continue
            for limits, dtype, quantize in asked(given.only):
                if quantize and location.endswith(".gguf"):
                    continue
                started = time.perf_counter()
                found = kept_or_measured(given.keep, name, location, dtype, quantize, Path(folder))
                own = [{"model": name, "limits": limits, **cell} for cell in cells_of(found)]
                cells += own
                n_values = sum(cell["values"] for cell in own)
                print(
                    f"{name} {limits} {dtype}: {n_values} values in {time.perf_counter() - started:.0f} s", flush=True
                )
    described = limits_from(pl.DataFrame(cells))
    if given.only is not None:
        described = with_the_others(described, widen=given.widen)
    LIMITS.write_text(json.dumps(described, indent=1) + "\n")
    print_table(described)


def asked(only: str | None) -> Iterator[tuple[str, str, str | None]]:
    """Name of the set of limits, dtype and kind of quantised weights of everything that is measured."""
    for limits, precisions in PRECISIONS.items():
        if only in (None, limits):
            yield from ((limits, dtype, quantize) for dtype, quantize in precisions)


def kept_or_measured(
    keep: Path | None, name: str, location: str, dtype: str, quantize: str | None, folder: Path
) -> pl.DataFrame:
    """The differences of one model's runs, from the file that an earlier call kept where there is one."""
    called = f"{name}-{dtype}" if quantize is None else f"{name}-{dtype}-{quantize}"
    path = None if keep is None else keep / f"{called}.parquet"
    if path is not None and path.is_file():
        return pl.read_parquet(path)
    model = load_model(location, device="cpu", dtype=dtype, quantize=quantize)
    found = clean_differences(model, location, dtype, quantize, folder / called)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found.write_parquet(path)
    return found


def cells_of(found: pl.DataFrame) -> list[dict[str, Any]]:
    """The 99.9th percentile and the largest difference of every cell of one model's runs."""
    n_layers = 1 + max(Checkpoint.from_name(name).layer for name in found["checkpoint"].drop_nulls().unique())
    values: dict[str, list[np.ndarray]] = {}
    for quantity, checkpoint, own in found.select("quantity", "checkpoint", "values").iter_rows():
        values.setdefault(cell_of(quantity, checkpoint, n_layers), []).append(np.array(own))
    together = {cell: np.concatenate(parts) for cell, parts in values.items()}
    return [
        {
            "cell": cell,
            "values": len(own),
            "percentile": float(np.quantile(own, PERCENTILE)),
            "largest": float(own.max()),
        }
        for cell, own in together.items()
    ]


def limits_from(cells: pl.DataFrame) -> dict[str, Any]:
    """By set of limits and cell, twice the largest percentile that any model showed, and the ceiling.

    A wrong choice among near ties is so rare that in float32 there may be none. What makes one is the error of a
    logit: then the limit of argmax is that of the log-probability in the same unit, that of draw the log-probability's.
    """
    together = cells.group_by("limits", "cell").agg(pl.col("percentile", "largest").max())
    found = {(row["limits"], row["cell"]): row for row in together.sort("limits", "cell").to_dicts()}
    limits: dict[str, dict[str, Any]] = {name: {} for name in PRECISIONS if (name, "argmax") in found}
    for (name, cell), row in found.items():
        if cell == LOGIT:
            continue
        instead = {"argmax": LOGIT, "draw": "logprob"}.get(cell, cell)
        usual = 2 * (row["percentile"] or found[name, instead]["percentile"])
        limits[name][cell] = {
            "usual": rounded_up(usual),
            "ceiling": rounded_up(2 * max(usual, row["largest"])),
            "largest_clean": rounded_up(row["largest"]),
        }
    counts = cells.group_by("model", "limits", maintain_order=True).agg(pl.col("values").sum())
    return {
        "derived_on": datetime.now(UTC).date().isoformat(),
        "command": "python benchmarks/derive_limits.py gemma-3-270m-q4_k_m.gguf",
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "device": "cpu",
        "percentile": PERCENTILE,
        "values": {f"{row['model']} {row['limits']}": row["values"] for row in counts.to_dicts()},
        "share": SHARE,
        "limits": limits,
    }


def with_the_others(derived: dict[str, Any], *, widen: bool) -> dict[str, Any]:
    """The limits as they stand, with those that were derived now in place of their own, or widened by them."""
    standing = json.loads(LIMITS.read_text())
    limits = derived["limits"]
    if widen:
        limits = {name: _wider(standing["limits"][name], cells) for name, cells in limits.items()}
    counts = {**standing["values"], **derived["values"]}
    return {**standing, "values": counts, "limits": {**standing["limits"], **limits}}


def _wider(standing: dict[str, Any], derived: dict[str, Any]) -> dict[str, Any]:
    return {
        cell: {name: max(value, standing[cell][name]) for name, value in figures.items()}
        for cell, figures in derived.items()
    }


def rounded_up(value: float) -> float:
    """Two significant digits, never less than ``value``."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit) * unit:.1e}")


def print_table(described: dict[str, Any]) -> None:
    """Limits, ceilings and clean maxima as Markdown."""
    names = list(described["limits"])
    print("| cell | " + " | ".join(f"{name}: limit | ceiling | largest clean" for name in names) + " |")
    print("|---|" + "---|---|---|" * len(names))
    for cell in described["limits"][names[0]]:
        figures = [f"{value:.1e}" for name in names for value in described["limits"][name][cell].values()]
        print(f"| {cell} | {' | '.join(figures)} |")


def models(gemma: Path | None, folder: Path) -> Iterator[tuple[str, str]]:
    """Name and location of every model."""
    for architecture in CONFIGS:
        yield f"tiny-{architecture}", saved(tiny_model(architecture), folder / architecture)
    yield "random-qwen3", saved(random_qwen3(), folder / "random-qwen3")
    yield "smollm2-135m", "smollm2-135m"
    if gemma is not None:
        yield "gemma3-270m", str(gemma)


def random_qwen3() -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def saved(module: Any, directory: Path) -> str:
    module.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


def clean_differences(
    model: LanguageModel, location: str, dtype: str, quantize: str | None, folder: Path
) -> pl.DataFrame:
    """Every difference of a run whose scores were stored without rounding."""
    suite = write_suite(model, location, folder)
    with mock.patch.object(tables, "round_mantissa", side_effect=lambda values: values):
        run_dir = night.start_run(
            prepare(load_suite(str(suite)), device="cpu", dtype=dtype, quantize=quantize),
            out=folder / "runs",
            batch_size=12,
            shard_size=None,
            allow_foreign=False,
            reporter=Reporter(Console(file=io.StringIO())),
            model=model,
        )
    stored = check_stored(run_dir, deep=True)
    if stored.problems or stored.counts != {"ok": len(stored.asked), "missing": 0}:
        raise SystemExit(f"{model.name}: no clean run: {stored.counts}; {stored.problems[:3]}")
    vectors = {path.stem: load_vectors(path) for path in (run_dir / "vectors").iterdir()}
    rows = []
    for generation in stored.generations(list(stored.asked)):
        true = independent_pass(model, generation.token_ids, generation.n_prompt)
        for problem in true.problems:
            print(f"{model.name}: {problem}")
        for d in differences(generation, true, vectors, rounding=0.0):
            rows.append((generation.asked.id, d.quantity, d.checkpoint, d.trait, d.first_position, d.values))
            if d.quantity == "logprob":
                spread = true.logits.double().std(dim=-1).numpy()
                rows.append((generation.asked.id, LOGIT, None, None, d.first_position, d.values / spread))
    columns = ["generation", "quantity", "checkpoint", "trait", "first_position", "values"]
    return pl.DataFrame(rows, schema=columns, orient="row")


def write_suite(model: LanguageModel, location: str, folder: Path) -> Path:
    """24 ragged prompts, half of them greedy, half sampled in three ways; four random unit readers."""
    folder.mkdir(parents=True)
    for number in range(N_TRAITS):
        save_vectors(random_vectors(model, number), folder / f"random{number}.safetensors")
    prompts = [f"{QUESTIONS[n % 6]} {'Number ' + str(n) if n >= 6 else ''}".strip() for n in range(24)]
    sampling = ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}, {"temperature": 1.3, "top_p": 0.9})
    suite = {
        "name": "clean",
        "model": location,
        "traits": [f"random{number}.safetensors" for number in range(N_TRAITS)],
        "generation": {"max_new_tokens": N_TOKENS},
        "experiments": [
            {"name": "greedy", "prompts": prompts[:12]},
            *(
                {"name": f"sampled{n}", "prompts": prompts[12 + n * 4 : 16 + n * 4], "generation": settings}
                for n, settings in enumerate(sampling)
            ),
        ],
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


if __name__ == "__main__":
    main()
