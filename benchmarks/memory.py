"""Peak memory of a run of 50 and of 500 prompts on the embedded model, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

SUBJECTS = ("rivers", "bread", "bicycles", "the moon", "violins")
TRAITS = "uncertainty_calibration,commitment_strength,cognitive_load,sycophancy"


def main() -> None:
    subprocess.run(
        [sys.executable, "-m", "traitscope", "traits", "fit", *TRAITS.split(",")], check=True, stdout=sys.stderr
    )
    with tempfile.TemporaryDirectory() as folder:
        few, many = (peak_memory_bytes(Path(folder), n_prompts) for n_prompts in (50, 500))
    print(f"peak memory: 50 prompts {few / 1e9:.3f} GB, 500 prompts {many / 1e9:.3f} GB, ratio {many / few:.3f}")


def peak_memory_bytes(folder: Path, n_prompts: int) -> int:
    prompts = folder / f"prompts{n_prompts}.txt"
    lines = [f"Tell me fact number {n} about {SUBJECTS[n % len(SUBJECTS)]}." for n in range(n_prompts)]
    prompts.write_text("\n".join(lines))
    command = ["capture", "--prompts-file", str(prompts), "--traits", TRAITS, "--out", str(folder), "--json"]
    finished = subprocess.run([sys.executable, "-m", "traitscope", *command], check=True, stdout=subprocess.PIPE)
    return json.loads(finished.stdout)["cost"]["peak_memory_bytes"]


if __name__ == "__main__":
    main()
