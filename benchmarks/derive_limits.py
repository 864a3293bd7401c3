"""Derives ``src/traitscope/verify/limits.json`` from clean runs; docs/verify.md says how.

``derive_limits.py GEMMA [--dump DIFFERENCES.parquet]``: GEMMA is the GGUF file of Gemma 3 270M. The other models are
the embedded one, a random Qwen3 of 12 layers, and the tiny random architectures of the tests.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import torch
import transformers
import yaml
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tiny_models import CONFIGS, VOCAB, tiny_model, tiny_tokenizer
from traitscope.model.loading import LanguageModel, load_model
from traitscope.run import night, tables
from traitscope.run.prepare import prepare
from traitscope.run.progress import Reporter
from traitscope.suite.file import load_suite
from traitscope.traits.vectors import REGIONS, Calibration, TraitVectors, VectorOrigin, load_vectors, save_vectors
from traitscope.verify.comparison import differences
from traitscope.verify.independent import independent_pass
from traitscope.verify.stored import check_stored

DTYPES = ("float32", "bfloat16")
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
    arguments.add_argument("gemma", type=Path)
    arguments.add_argument("--dump", type=Path)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = []
        for name, location, n_tokens in models(given.gemma, Path(folder)):
            for dtype in DTYPES:
                started = time.perf_counter()
                model = load_model(location, device="cpu", dtype=dtype)
                found = clean_differences(model, location, dtype, n_tokens, Path(folder) / f"{name}-{dtype}")
                frames.append(found.with_columns(pl.lit(name).alias("model"), pl.lit(dtype).alias("dtype")))
                print(f"{name} {dtype}: {len(found)} rows in {time.perf_counter() - started:.0f} s", flush=True)
        values = pl.concat(frames)
    if given.dump:
        values.write_parquet(given.dump)


def models(gemma: Path, folder: Path) -> Iterator[tuple[str, str, int]]:
    """Name, location and response length of every model."""
    yield "smollm2-135m", "smollm2-135m", 40
    yield "gemma3-270m", str(gemma), 40
    yield "random-qwen3", saved(random_qwen3(), folder / "random-qwen3"), 40
    for architecture in CONFIGS:
        yield f"tiny-{architecture}", saved(tiny_model(architecture), folder / architecture), 40


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


def clean_differences(model: LanguageModel, location: str, dtype: str, n_tokens: int, folder: Path) -> pl.DataFrame:
    """Every difference of a run whose scores were stored without rounding."""
    suite = write_suite(model, location, n_tokens, folder)
    with (
        mock.patch.object(night, "load_source", return_value=model),
        mock.patch.object(tables, "round_mantissa", side_effect=lambda values: values),
    ):
        run_dir = night.start_run(
            prepare(load_suite(str(suite)), device="cpu", dtype=dtype),
            out=folder / "runs",
            batch_size=12,
            shard_size=None,
            allow_foreign=False,
            reporter=Reporter(Console(file=io.StringIO())),
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
    columns = ["generation", "quantity", "checkpoint", "trait", "first_position", "values"]
    return pl.DataFrame(rows, schema=columns, orient="row").with_columns(pl.lit(model.n_layers).alias("n_layers"))


def write_suite(model: LanguageModel, location: str, n_tokens: int, folder: Path) -> Path:
    """24 greedy and 24 sampled generations of ragged prompts, four random unit readers."""
    folder.mkdir(parents=True)
    for number in range(N_TRAITS):
        save_vectors(random_vectors(model, number), folder / f"random{number}.safetensors")
    prompts = [f"{QUESTIONS[n % 6]} {'Number ' + str(n) if n >= 6 else ''}".strip() for n in range(24)]
    sampling = ({"temperature": 1.0}, {"temperature": 0.7, "top_k": 20}, {"temperature": 1.3, "top_p": 0.9})
    suite = {
        "name": "clean",
        "model": location,
        "traits": [f"random{number}.safetensors" for number in range(N_TRAITS)],
        "generation": {"max_new_tokens": n_tokens},
        "experiments": [
            {"name": "greedy", "prompts": prompts},
            *(
                {"name": f"sampled{n}", "prompts": prompts[n * 8 : n * 8 + 8], "generation": settings}
                for n, settings in enumerate(sampling)
            ),
        ],
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(suite))
    return path


def random_vectors(model: LanguageModel, number: int) -> TraitVectors:
    names = tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints)
    generator = torch.Generator().manual_seed(number)
    reader = torch.nn.functional.normalize(torch.randn(len(names), model.anatomy.d_model, generator=generator), dim=-1)
    return TraitVectors(
        trait=f"random{number}",
        description="a random direction",
        poles=("up", "down"),
        checkpoints=names,
        readout=max(1, len(names) - 1 - number),
        reader=reader,
        steerer=reader.clone(),
        calibration=Calibration(
            mean={region: torch.zeros(len(names)) for region in REGIONS},
            std={region: torch.ones(len(names)) for region in REGIONS},
            norm=torch.ones(len(names)),
            write=torch.zeros(len(names)),
        ),
        origin=VectorOrigin(model.name, model.fingerprint.short, "", "", {}, {}, "", None),
    )


if __name__ == "__main__":
    main()
