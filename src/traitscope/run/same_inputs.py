"""Whether what the command line says agrees with what a run was frozen with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from traitscope.captures.files import read_frozen_plan
from traitscope.errors import InputError
from traitscope.run.frozen import suite_difference
from traitscope.suite.file import LoadedSuite, load_suite
from traitscope.suite.prompts import read_prompts


def refuse_other_inputs(
    run_dir: Path,
    *,
    suite: str | None,
    model: str | None,
    max_new_tokens: int | None,
    device: str,
    dtype: str,
    devices: Sequence[torch.device] = (),
    quantize: str | None = None,
) -> None:
    """Refuse to go on with a run under another suite, other prompts, or other flags.

    Other ``devices`` of the same kind are none.

    Raises:
        InputError: shows what differs.
    """
    described = read_frozen_plan(run_dir)
    frozen = described["suite"]
    first = described["devices"][0]
    differences = [
        f"{name}: {began} → {given}"
        for name, began, given in (("device", first, device), ("dtype", described["dtype"], dtype))
        if given not in ("auto", began) and not began.startswith(f"{given}:")
    ]
    kinds = {given.type for given in devices}
    differences += [f"devices: {first} → {kind}" for kind in kinds - {torch.device(first).type}]
    if quantize not in (None, was := described["model"]["quantization"]):
        differences.append(f"quantize: {was} → {quantize}")
    if suite is not None:
        loaded = load_suite(suite).with_overrides(model=model, max_new_tokens=max_new_tokens)
        differences += suite_difference(frozen, loaded.resolved())
        differences += _prompt_differences(run_dir, loaded)
    elif model is not None and model != frozen["model"]:
        differences.append(f"model: {frozen['model']} → {model}")
    if suite is None and max_new_tokens is not None:
        differences += [
            f"{experiment['name']}.generation.max_new_tokens: {now} → {max_new_tokens}"
            for experiment in frozen["experiments"]
            if (now := experiment["generation"]["max_new_tokens"]) != max_new_tokens
        ]
    if differences:
        shown = "; ".join(differences[:5]) + ("; …" if len(differences) > 5 else "")
        raise InputError(f"run {run_dir}: began under other inputs: {shown}. Start a new run, or resume without these")


def _prompt_differences(run_dir: Path, loaded: LoadedSuite) -> list[str]:
    table = pq.read_table(run_dir / "prompts.parquet", columns=["experiment", "prompt_id", "messages", "response_ids"])
    frozen: dict[tuple[str, str], Any] = {
        (row["experiment"], row["prompt_id"]): row["messages"] for row in table.to_pylist()
    }
    given = {
        (experiment.name, prompt.id): list(prompt.messages)
        for experiment in loaded.suite.experiments
        for prompt in read_prompts(experiment, loaded.folder)
    }
    return [
        f"prompt {experiment}/{prompt_id}: {_text(frozen.get(key))} → {_text(given.get(key))}"
        for key in dict.fromkeys([*frozen, *given])
        for experiment, prompt_id in [key]
        if frozen.get(key) != given.get(key)
    ]


def _text(messages: Any) -> str:
    return "none" if messages is None else repr(messages[-1]["content"])
