"""Milliseconds of a decode step on a CUDA device: compiled with and without capture, ordinary, and ``generate``'s.

``gpu.py [--batches 1 24 64 256] [--out FILE]``: the model has the shape of Gemma 2 2B and random weights in bfloat16,
so nothing is downloaded. All sides decode the same number of tokens behind prompts of the same lengths; rounds are
interleaved. ``--shape tiny`` tries the script in seconds, on any device. Before anything is timed the scores of
compiled and ordinary steps are compared.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tiny_models import tiny_tokenizer
from traitscope.bench.vectors import random_vectors
from traitscope.model.capture import ReaderBank, capturing
from traitscope.model.decode import DecodeLoop, decode
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel, load_model
from traitscope.model.sampling import Sampling
from traitscope.model.static_step import StaticSteps
from traitscope.run.ceilings import synchronise
from traitscope.traits.vectors import readers_of

SHAPES: dict[str, dict[str, Any]] = {
    "gemma-2-2b": {},  # the defaults of transformers' configuration
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1000,
    },
}
_COPY_BYTES = 4_000_000_000
_COPIES = 10


@dataclass(frozen=True)
class Measured:
    """Of one batch width: milliseconds a step in each round by contender, and GB allocated at most."""

    batch: int
    milliseconds: dict[str, list[float]]
    peak_gigabytes: dict[str, float]

    def median(self, contender: str) -> float:
        return statistics.median(self.milliseconds[contender])

    def ratio(self, contender: str, unit: str) -> float:
        """The median of ratios that are paired by round."""
        pairs = zip(self.milliseconds[contender], self.milliseconds[unit], strict=True)
        return statistics.median(own / other for own, other in pairs)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--batches", type=int, nargs="+", default=[1, 24, 64, 256])
    arguments.add_argument("--tokens", type=int, default=64, help="Decode steps that are timed together.")
    arguments.add_argument("--prompt", type=int, default=32, help="Tokens of the longest prompt.")
    arguments.add_argument("--traits", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--device", default="cuda")
    arguments.add_argument("--shape", choices=SHAPES, default="gemma-2-2b")
    arguments.add_argument("--out", type=Path, help="Where everything is written as JSON.")
    given = arguments.parse_args()
    device = torch.device(given.device)
    model = random_gemma2(given.shape, device)
    bank = bank_of_random_traits(model, given.traits)
    weight_bytes = facts_of_module(model.module).weight_bytes(model.dtype.itemsize)
    copied = moved_bytes_per_second(device)
    floor = 1000 * weight_bytes / copied
    print(machine(device), flush=True)
    print(f"{weight_bytes / 1e9:.2f} GB of weights, {copied / 1e12:.2f} TB/s read and written: floor {floor:.2f} ms")
    print("batch | capture | none | ordinary | generate | capture/none | capture/generate | capture/floor | tokens/s")
    results = []
    for batch in given.batches:
        print(compared(model, bank, batch, given.prompt), flush=True)
        measured = measure(model, bank, batch, given.prompt, given.tokens, given.rounds)
        results.append(measured)
        print(line(measured, floor), flush=True)
    if given.out is not None:
        described = {
            "machine": machine(device),
            "weight_bytes": weight_bytes,
            "moved_bytes_per_second": copied,
            "floor_ms": floor,
            "arguments": {name: str(value) for name, value in vars(given).items()},
            "results": [asdict(measured) for measured in results],
        }
        given.out.write_text(json.dumps(described, indent=1))


def random_gemma2(shape: str, device: torch.device) -> LanguageModel:
    """Random weights, drawn on the device; the tokenizer is there because a model needs one."""
    config = transformers.Gemma2Config(**SHAPES[shape])
    torch.manual_seed(0)
    with torch.device(device):
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return replace(load_model(module.eval(), tiny_tokenizer()), eos_token_ids=frozenset())


def bank_of_random_traits(model: LanguageModel, n_traits: int) -> ReaderBank:
    vectors = [random_vectors(model, f"random{number}", seed=number) for number in range(n_traits)]
    return ReaderBank(tuple(v.trait for v in vectors), readers_of(vectors), tuple(v.readout for v in vectors))


def moved_bytes_per_second(device: torch.device) -> float:
    """Bytes read plus bytes written by a large copy on the device, the fastest of some."""
    source = torch.rand(_COPY_BYTES // 4 if device.type == "cuda" else 25_000_000, device=device)
    target = torch.empty_like(source)
    fastest = min(timed(device, lambda: target.copy_(source)) for _ in range(_COPIES))
    return 2 * source.numel() * source.itemsize / fastest


def compared(model: LanguageModel, bank: ReaderBank, batch: int, longest: int) -> str:
    """How far scores of compiled steps lie from those of ordinary ones, of rows that chose the same tokens."""
    prompts = ragged_prompts(model, batch, longest)
    asked: dict[str, Any] = {"max_new_tokens": 8, "sampling": Sampling(), "seeds": [0] * batch, "bank": bank}
    compiled = decode(model, prompts, **asked)
    ordinary = decode(replace(model, static_steps=StaticSteps(wanted=False)), prompts, **asked)
    pairs = [(a.trace, b.trace) for a, b in zip(compiled, ordinary, strict=True) if a.response_ids == b.response_ids]
    apart = [float((abs(a.scores - b.scores) / b.norms[..., None]).max()) for a, b in pairs if a and b]
    how = "compiled" if model.static_steps.wanted else "not compiled"
    same = f"{len(pairs)} of {batch} rows chose the same tokens"
    return f"batch {batch}, {how}: {same}, scores within {max(apart, default=0):.1e} of the norm"


def measure(model: LanguageModel, bank: ReaderBank, batch: int, longest: int, n_steps: int, n_rounds: int) -> Measured:
    """Time all contenders in turn; a round before the first one is thrown away."""
    prompts = ragged_prompts(model, batch, longest)
    ordinary = replace(model, static_steps=StaticSteps(wanted=False))
    contenders: dict[str, Callable[[], float]] = {
        "ordinary": lambda: our_seconds(ordinary, prompts, bank, n_steps),
        "capture": lambda: our_seconds(model, prompts, bank, n_steps),
        "none": lambda: our_seconds(model, prompts, None, n_steps),
        "generate": lambda: generate_seconds(model, prompts, n_steps),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, float] = {}
    for round_number in range(n_rounds + 1):
        for name, seconds in contenders.items():
            with peak_memory(model.device, peaks, name):
                found = 1000 * seconds() / n_steps
            if round_number:
                milliseconds[name].append(found)
    return Measured(batch, milliseconds, peaks)


def ragged_prompts(model: LanguageModel, batch: int, longest: int) -> list[list[int]]:
    """Prompts of ``longest`` tokens and, every other one, of three quarters of it; they have no beginning in common."""
    generator = torch.Generator().manual_seed(batch)
    vocab_size = int(model.module.config.vocab_size)
    lengths = [longest if row % 2 == 0 else 3 * longest // 4 for row in range(batch)]
    return [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def our_seconds(model: LanguageModel, prompts: list[list[int]], bank: ReaderBank | None, n_steps: int) -> float:
    """Of ``n_steps`` decode steps behind the prefill."""
    watching = nullcontext(None) if bank is None else capturing(model.module, model.anatomy, bank, model.device)
    with watching as capture:
        loop = DecodeLoop(
            model,
            prompts,
            max_new_tokens=n_steps,
            sampling=Sampling(),
            seeds=[0] * len(prompts),
            capture=capture,
        )
        loop.prefill()
        seconds = timed(model.device, lambda: [loop.step() for _ in range(n_steps)])
    if any(len(row.response_ids) != n_steps for row in loop.results()):
        raise RuntimeError("a response ended early")
    return seconds


def generate_seconds(model: LanguageModel, prompts: list[list[int]], n_steps: int) -> float:
    """Of ``n_steps`` decode steps: of a generation of that many tokens more, less one of a single token."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)

    def generate(n_tokens: int) -> None:
        with torch.inference_mode():
            found = model.module.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=n_tokens, eos_token_id=None, pad_token_id=0
            )
        if found.shape[1] != longest + n_tokens:
            raise RuntimeError("a response ended early")

    whole = timed(model.device, lambda: generate(n_steps + 1))
    return whole - timed(model.device, lambda: generate(1))


@contextmanager
def peak_memory(device: torch.device, peaks: dict[str, float], name: str) -> Iterator[None]:
    """Note the most that was allocated during the block; nothing on other devices than CUDA."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.reset_peak_memory_stats(device)
    yield
    peaks[name] = torch.cuda.max_memory_allocated(device) / 1e9


def timed(device: torch.device, work: Callable[[], object]) -> float:
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{name}, {versions}"


def line(measured: Measured, floor: float) -> str:
    """One row of the table: medians of milliseconds a step, ratios paired by round."""
    medians = [measured.median(name) for name in ("capture", "none", "ordinary", "generate")]
    capture = medians[0]
    ratios = [measured.ratio("capture", "none"), measured.ratio("capture", "generate"), capture / floor]
    shown = [f"{value:.2f}" for value in medians] + [f"{value:.3f}" for value in ratios]
    return " | ".join([str(measured.batch), *shown, f"{1000 * measured.batch / capture:,.0f}"])


if __name__ == "__main__":
    main()
