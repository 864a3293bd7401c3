"""What a plan says of the cost: counts, time, memory, disk, what-ifs, and the old procedure beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from traitscope.captures.old_procedure import AskedText, old_procedure
from traitscope.checkpoints import checkpoints_of
from traitscope.model.capture import captured_bytes_per_position
from traitscope.model.fingerprint import fingerprint_of_source
from traitscope.run.batching import batch_width, make_batches
from traitscope.run.devices import at_once, most_on_one
from traitscope.run.engine import GenerationTask
from traitscope.run.estimate import Estimate, Setting, estimate
from traitscope.run.frozen import provisional_tasks
from traitscope.run.guess import seconds_range
from traitscope.run.opening import opened_bytes, refuse_full_disk, refuse_too_large
from traitscope.run.pace import Pace, remembered_pace
from traitscope.run.prepare import Prepared

_WHAT_IF_TOKENS = (20, 50, 100)


@dataclass(frozen=True)
class _Costed:
    """Generations with the batches that they fall into and what those take."""

    tasks: list[GenerationTask]
    width: int
    estimate: Estimate


def describe_plan(prepared: Prepared, batch_size: int | None, out: Path) -> dict[str, Any]:
    """The plan as plain values, for a table or JSON. Bytes and seconds; nothing here needs the weights.

    Raises:
        InputError: open layers that the memory, or the disk of ``out``, cannot hold.
    """
    plan, facts, dtype = prepared.plan, prepared.facts(), prepared.known_dtype
    n_checkpoints = len(checkpoints_of([True] * facts.n_layers))
    pace = _pace(prepared)
    setting = Setting(facts, dtype, len(plan.traits), n_checkpoints, pace)
    tasks = provisional_tasks(plan, facts.n_layers)
    refuse_too_large(facts, dtype.itemsize, prepared.device, tasks)
    opened = sum(opened_bytes(facts, dtype.itemsize, task) for task in tasks)
    refuse_full_disk(out, opened)
    costed = _costed(setting, prepared, tasks, batch_size)
    longest = max((task.n_prompt + task.most_response_tokens for task in tasks), default=1)
    prompt_tokens = sum(task.n_prompt for task in tasks)
    response_tokens = sum(task.most_response_tokens for task in tasks)
    replayed_tokens = sum(task.n_prompt + task.most_response_tokens for task in tasks if task.opened is not None)
    return {
        "suite": prepared.loaded.suite.name,
        "model": prepared.source.name,
        "devices": [str(device) for device in prepared.devices],
        "dtype": str(dtype).removeprefix("torch."),
        "quantization": prepared.source.quantization,
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
        "batch_width": costed.width,
        "template": _template_line(prepared),
        "estimate": asdict(costed.estimate),
        "at_once": at_once(prepared.devices),
        "seconds_range": None if pace is not None else _guessed_seconds(prepared, costed.width, tasks),
        "bytes": {
            "weights": facts.weight_bytes(dtype.itemsize),
            "cache": costed.width * longest * facts.cache_bytes_per_token(dtype.itemsize),
            "scores": costed.width * longest * captured_bytes_per_position(n_checkpoints, len(plan.traits)),
            "peak": costed.estimate.memory_bytes,
            "disk": costed.estimate.disk_bytes,
            "internals": opened,
        },
        "what_ifs": _what_ifs(setting, prepared, tasks, batch_size),
        "old_procedure": _old_procedure(prepared),
        "token_forwards": prompt_tokens + response_tokens + replayed_tokens,
    }


def _pace(prepared: Prepared) -> Pace | None:
    fingerprint = fingerprint_of_source(prepared.source, prepared.tokenizer)
    if fingerprint is None:
        return None
    return remembered_pace(fingerprint.short, prepared.device, prepared.known_dtype)


def _costed(setting: Setting, prepared: Prepared, tasks: Sequence[GenerationTask], batch_size: int | None) -> _Costed:
    itemsize = setting.dtype.itemsize
    width = batch_size or batch_width(
        setting.facts, prepared.device, itemsize, tasks, setting.pace, most_on_one(prepared.devices)
    )
    width = max(1, min(width, len(tasks)))
    batches = make_batches(tasks, partial(opened_bytes, setting.facts, itemsize))
    return _Costed(list(tasks), width, estimate(setting, tasks, batches, width))


def _what_ifs(
    setting: Setting, prepared: Prepared, tasks: Sequence[GenerationTask], batch_size: int | None
) -> list[dict[str, Any]]:
    """The same suite with other lengths of response, and with every other prompt."""
    cases = {
        f"{n} new tokens": [task if task.response_ids else replace(task, max_new_tokens=n) for task in tasks]
        for n in _WHAT_IF_TOKENS
    }
    cases["half the prompts"] = list(tasks[::2])
    return [
        {"what": what, **asdict(_costed(setting, prepared, changed, batch_size).estimate)}
        for what, changed in cases.items()
    ]


def _guessed_seconds(prepared: Prepared, width: int, tasks: Sequence[GenerationTask]) -> list[float]:
    steps = -(-sum(task.most_response_tokens for task in tasks) // width)
    low, high = seconds_range(
        prepared.facts(),
        prepared.device,
        prepared.known_dtype,
        prompt_tokens=sum(task.n_prompt for task in tasks),
        steps=steps,
        width=width,
    )
    return [round(low, 1), round(high, 1)]


def _template_line(prepared: Prepared) -> str:
    if getattr(prepared.tokenizer, "chat_template", None):
        return "chat template of the model"
    return f"no chat template: prompts are put as {prepared.loaded.suite.base_template!r}"


def _old_procedure(prepared: Prepared) -> dict[str, int]:
    """What shell scripts would have needed if no response ends early."""
    # Scores and open layers of the same prompt of an experiment are one process a trait.
    each = {(c.experiment, c.prompt_id, c.sample, c.alpha): c for c in prepared.plan.captures}
    asked = [
        AskedText(
            len(capture.traits),
            capture.generation.n_prompt,
            capture.generation.most_response_tokens,
            given=capture.generation.key.response_ids is not None,
        )
        for capture in each.values()
        if capture.generation.status != "too_long"
    ]
    return asdict(old_procedure(asked))
