"""What a plan says of the cost: counts, memory, disk, a range for the time, and the old procedure beside it."""

from __future__ import annotations

from typing import Any

from traitscope.checkpoints import checkpoints_of
from traitscope.model.capture import captured_bytes_per_position
from traitscope.run.batching import widest_batch
from traitscope.run.prepare import Prepared
from traitscope.run.timing import seconds_range

_PROCESS_BYTES = 700_000_000
# As measured on the reference night, rounded up.
_DISK_BYTES_PER_SCORE = 1.6
_DISK_BYTES_PER_WRITE = 3.0
_DISK_BYTES_PER_TOKEN = 12
_DISK_BYTES_PER_GENERATION = 3_000


def describe_plan(prepared: Prepared, batch_size: int | None) -> dict[str, Any]:
    """The plan as plain values, for a table or JSON. Bytes and seconds; nothing here needs the weights."""
    plan, facts = prepared.plan, prepared.facts()
    dtype = prepared.known_dtype
    n_checkpoints = len(checkpoints_of([True] * facts.n_layers))
    runnable = plan.runnable
    prompt_tokens = sum(generation.n_prompt for generation in runnable)
    response_tokens = sum(generation.most_response_tokens for generation in runnable)
    longest = max((g.n_prompt + g.most_response_tokens for g in runnable), default=1)
    width = batch_size or widest_batch(facts, prepared.device, dtype.itemsize, longest)
    width = max(1, min(width, len(runnable)))
    steps = -(-response_tokens // width)
    low, high = seconds_range(facts, prepared.device, dtype, prompt_tokens=prompt_tokens, steps=steps, width=width)
    return {
        "suite": prepared.loaded.suite.name,
        "model": prepared.source.name,
        "device": str(prepared.device),
        "dtype": str(dtype).removeprefix("torch."),
        "experiments": len(prepared.loaded.suite.experiments),
        "captures": len(plan.captures),
        "generations": len(plan.generations),
        "too_long": [
            f"{capture.experiment}/{capture.prompt_id} ({capture.generation.n_prompt} tokens of prompt and "
            f"{capture.generation.most_response_tokens} of response)"
            for capture in plan.captures
            if capture.generation.status == "too_long"
        ],
        "traits": list(plan.traits),
        "checkpoints": n_checkpoints,
        "prompt_tokens": prompt_tokens,
        "most_response_tokens": response_tokens,
        "batch_width": width,
        "template": _template_line(prepared),
        "seconds": [round(low, 1), round(high, 1)],
        "bytes": {
            "weights": facts.weight_bytes(dtype.itemsize),
            "cache": width * longest * facts.cache_bytes_per_token(dtype.itemsize),
            "scores": width * longest * captured_bytes_per_position(n_checkpoints, len(plan.traits)),
            "peak": _PROCESS_BYTES
            + facts.weight_bytes(dtype.itemsize)
            + width * facts.bytes_per_row(longest, dtype.itemsize),
            "disk": _disk_bytes(prepared, n_checkpoints),
        },
        "old_procedure": _old_procedure(prepared),
        "token_forwards": prompt_tokens + response_tokens,
    }


def _template_line(prepared: Prepared) -> str:
    if getattr(prepared.tokenizer, "chat_template", None):
        return "chat template of the model"
    return f"no chat template: prompts are put as {prepared.loaded.suite.base_template!r}"


def _disk_bytes(prepared: Prepared, n_checkpoints: int) -> int:
    d_model = prepared.config.get_text_config().hidden_size
    total = 2.0 * len(prepared.plan.traits) * n_checkpoints * d_model * 4  # readers and steerers
    for generation in prepared.plan.runnable:
        n_positions = generation.n_prompt + generation.most_response_tokens
        states = n_positions * n_checkpoints
        n_traits = len(generation.traits)
        total += states * (1 + n_traits) * _DISK_BYTES_PER_SCORE
        total += states * n_traits * _DISK_BYTES_PER_WRITE / 2  # writes end at R, about half depth
        total += n_positions * _DISK_BYTES_PER_TOKEN + _DISK_BYTES_PER_GENERATION
    return int(total)


def _old_procedure(prepared: Prepared) -> dict[str, int]:
    """One process, one load, one generation without a cache for each prompt and trait."""
    loads, forwards = 0, 0
    for capture in prepared.plan.captures:
        generation = capture.generation
        if generation.status == "too_long":
            continue
        n_prompt, n_response = generation.n_prompt, generation.most_response_tokens
        loads += len(capture.traits)
        forwards += len(capture.traits) * sum(n_prompt + step for step in range(n_response))
    return {"model_loads": loads, "generations": loads, "token_forwards": forwards}
