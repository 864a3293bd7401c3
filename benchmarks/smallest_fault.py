"""Prints the smallest change of one stored score that verify sees, found by bisection (docs/verify.md).

``smallest_fault.py [MODEL]``: four prompts on the embedded model, or the one that is named, in both dtypes.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from random_traits import random_vectors
from traitscope.model.loading import load_model
from traitscope.run.night import start_run
from traitscope.run.prepare import prepare
from traitscope.run.progress import Reporter
from traitscope.suite.file import load_suite
from traitscope.traits.vectors import load_vectors, save_vectors
from traitscope.verify.comparison import STORED_ROUNDING, differences
from traitscope.verify.independent import IndependentPass, independent_pass
from traitscope.verify.limits import Limits, read_limits
from traitscope.verify.stored import StoredGeneration, check_stored

PROMPTS = ["Why?", "What is the capital of France?", "Write a poem about the sea.", "Name three rivers."]
N_FAULTS = 60
N_HALVINGS = 12


def main() -> None:
    location = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory() as folder:
            print(line(location, dtype, Path(folder)), flush=True)


def line(location: str, dtype: str, folder: Path) -> str:
    model = load_model(location, device="cpu", dtype=dtype)
    vectors = random_vectors(model, 0)
    save_vectors(vectors, folder / "random0.safetensors")
    suite = {
        "name": "clean",
        "model": location,
        "traits": ["random0.safetensors"],
        "generation": {"max_new_tokens": 20},
        "experiments": [{"name": "all", "prompts": PROMPTS}],
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite))
    run_dir = start_run(
        prepare(load_suite(str(folder / "suite.yaml")), device="cpu", dtype=dtype),
        out=folder / "runs",
        batch_size=4,
        shard_size=None,
        allow_foreign=False,
        reporter=Reporter(Console(file=io.StringIO())),
    )
    stored = check_stored(run_dir)
    faults = random.Random(0)
    own = {vectors.trait: load_vectors(run_dir / "vectors" / "random0.safetensors")}
    limits = read_limits(dtype)
    found, promised = [], []
    for generation in stored.generations(list(stored.asked)):
        true = independent_pass(model, generation.token_ids, generation.n_prompt)
        for _ in range(N_FAULTS // len(PROMPTS)):
            checkpoint = faults.choice(generation.asked.checkpoints)
            position = faults.randrange(len(generation.token_ids))
            norm = float(generation.norms[checkpoint][position])
            score = abs(float(generation.scores[checkpoint, "random0"][position]))
            sure = limits.certainly_seen(checkpoint, model.n_layers) * norm + 2 * STORED_ROUNDING * score
            found.append(smallest_seen(generation, checkpoint, position, 2 * sure, true, own, limits) / norm)
            promised.append(sure / norm)
    n_held = sum(seen <= sure for seen, sure in zip(found, promised, strict=True))
    return (
        f"{location}, {dtype}: {len(found)} single scores, "
        f"{n_held} of them seen as promised; smallest change seen, in units of the state's norm: "
        f"median {np.median(found):.1e}, largest {max(found):.1e}; promised: median {np.median(promised):.1e}, "
        f"largest {max(promised):.1e}; a score is typically {1 / model.anatomy.d_model**0.5:.1e}"
    )


def smallest_seen(
    generation: StoredGeneration,
    checkpoint: str,
    position: int,
    most: float,
    true: IndependentPass,
    vectors: dict,
    limits: Limits,
) -> float:
    """The smallest change upwards that goes beyond the ceiling, between 0 and ``most``."""
    low, high = 0.0, most
    n_layers = 1 + max(int(name.rsplit(".", 1)[1]) for name in true.states)
    ceiling = limits.of("score", checkpoint, n_layers).ceiling
    key = (checkpoint, "random0")
    for _ in range(N_HALVINGS):
        middle = (low + high) / 2
        values = generation.scores[key].astype(np.float64)
        values[position] += middle
        changed = replace(generation, scores={key: values}, norms={}, writes={})
        seen = any(d.quantity == "score" and d.values[position] > ceiling for d in differences(changed, true, vectors))
        low, high = (low, middle) if seen else (middle, high)
    return high


if __name__ == "__main__":
    main()
