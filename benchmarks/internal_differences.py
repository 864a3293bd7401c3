"""Prints the table of open layers in docs/accuracy.md: how far each tensor is from an independent computation."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "model"))

from test_internals import differences
from tiny_models import CONFIGS, tiny_biased_model, tiny_tokenizer
from traitscope.model.loading import LanguageModel, load_model

COLUMNS = ("q", "k", "v", "pattern", "sink", "head_out", "neurons", "router", "attn_out", "mlp_out")


def main() -> None:
    print(f"| model | {' | '.join(COLUMNS)} |\n|{'---|' * (1 + len(COLUMNS))}")
    for architecture in CONFIGS:
        print(row(f"tiny {architecture}", load_model(tiny_biased_model(architecture), tiny_tokenizer()), architecture))
    print(row("smollm2-135m", load_model("smollm2-135m", device="cpu", dtype="float32"), "llama"))


def row(name: str, model: LanguageModel, architecture: str) -> str:
    found = differences(model, architecture)
    cells = (f"{found[column]:.1e}" if column in found else "–" for column in COLUMNS)
    return f"| {name} | {' | '.join('0' if cell == '0.0e+00' else cell for cell in cells)} |"


if __name__ == "__main__":
    main()
