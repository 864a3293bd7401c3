"""A run's frozen inputs: written once when the run begins, read back by every process that goes on with it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from traitscope.captures.files import read_frozen_plan, read_retries
from traitscope.captures.schema import CAPTURES, FORMAT_VERSION, PROMPTS
from traitscope.checkpoints import Checkpoint
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling, row_seed
from traitscope.model.source import ModelSource
from traitscope.run.batching import Shard
from traitscope.run.commit import disk_errors, write_json, write_table, write_text
from traitscope.run.engine import GenerationTask
from traitscope.run.steering import Dose, refuse_uncovered
from traitscope.run.tables import Outcome
from traitscope.suite.plan import OpenLayers, Plan, PlannedGeneration
from traitscope.suite.rendering import Rendered
from traitscope.traits.fitting import library_versions
from traitscope.traits.vectors import TraitVectors, load_vectors, save_vectors


@dataclass(frozen=True)
class FrozenRun:
    """A run directory's inputs as they were when it began."""

    run_dir: Path
    source: ModelSource
    fingerprint: str
    devices: tuple[str, ...]
    dtype: str
    packed_linears: frozenset[tuple[int, int]]
    compiled_steps: bool
    suite: dict[str, Any]
    checkpoints: tuple[str, ...]
    vectors: tuple[TraitVectors, ...]
    tasks: dict[str, GenerationTask]
    shards: tuple[Shard, ...]
    batch_width: int
    estimate: dict[str, Any]


def new_run_directory(out: Path, name: str) -> Path:
    """Make ``<out>/<name>-<yyyymmdd-hhmmss>``; never one that exists."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        run_dir = out / f"{name}-{stamp}{suffix}"
        with disk_errors(run_dir):
            try:
                run_dir.mkdir()
            except FileExistsError:
                continue
            (run_dir / "shards").mkdir()
            (run_dir / "vectors").mkdir()
        return run_dir
    raise InputError(f"{out}: too many runs of {name} began in one second")


def planned_tasks(
    plan: Plan, vectors: Sequence[TraitVectors], checkpoints: Sequence[Checkpoint], fingerprint: str
) -> dict[str, GenerationTask]:
    """Every generation of the plan as the engine needs it, by id."""
    by_trait = {vector.trait: vector for vector in vectors}
    n_layers = 1 + max(checkpoint.layer for checkpoint in checkpoints)
    tasks = {}
    for generation in plan.generations:
        layers = generation.layers(n_layers, lambda trait: by_trait[trait].readout_layer)
        readouts = {by_trait[trait].readout for trait in generation.traits}
        kept = tuple(
            index
            for index, checkpoint in enumerate(checkpoints)
            if checkpoint.layer in layers or checkpoint.site == "resid_pre" or index in readouts
        )
        opened = generation.open_layers(n_layers, lambda trait: by_trait[trait].readout_layer)
        dose = _dose(generation, n_layers, lambda trait: by_trait[trait].readout_layer)
        if dose is not None:
            refuse_uncovered(dose, by_trait[dose.trait])
        task = _generation_task(generation, generation.key.identity(fingerprint), kept, opened, dose)
        tasks[task.id] = task
    return tasks


def provisional_tasks(plan: Plan, n_layers: int) -> list[GenerationTask]:
    """What will be run, to count with before any readout is known: each is taken to be another layer of the middle."""
    tasks = []
    for number, generation in enumerate(plan.runnable):
        readouts = {trait: min(n_layers // 2 + n, n_layers - 1) for n, trait in enumerate(sorted(generation.traits))}
        n_kept = 1 + 2 * len(generation.layers(n_layers, readouts.__getitem__))
        opened = generation.open_layers(n_layers, readouts.__getitem__)
        dose = _dose(generation, n_layers, readouts.__getitem__)
        tasks.append(_generation_task(generation, str(number), tuple(range(n_kept)), opened, dose))
    return tasks


def _dose(generation: PlannedGeneration, n_layers: int, readout_layer: Callable[[str], int]) -> Dose | None:
    planned = generation.key.dose
    if planned is None:
        return None
    layers = planned.resolved_layers(n_layers, readout_layer)
    return Dose(planned.trait, planned.alpha, layers, planned.positions)


def _generation_task(
    generation: PlannedGeneration,
    identity: str,
    checkpoints: tuple[int, ...],
    opened: OpenLayers | None,
    dose: Dose | None,
) -> GenerationTask:
    """A planned generation as the engine needs it; ``checkpoints`` are the indices to keep."""
    key = generation.key
    sampling = Sampling(key.temperature, key.top_p, key.top_k)
    sampled = key.response_ids is None and not sampling.greedy
    return GenerationTask(
        id=identity,
        prompt=generation.prompt,
        response_ids=key.response_ids,
        max_new_tokens=key.max_new_tokens,
        sampling=sampling,
        seed=row_seed(key.seed, key.token_ids, key.sample) if sampled else None,
        traits=frozenset(generation.traits),
        checkpoints=checkpoints,
        opened=opened,
        dose=dose,
    )


def too_long_outcome(task: GenerationTask, context_length: int | None) -> Outcome:
    """The record of a generation that the model cannot read."""
    return Outcome(
        task.id,
        "too_long",
        task.n_prompt,
        task.seed,
        error=(
            f"{task.n_prompt} prompt tokens and {task.most_response_tokens} of response exceed the model's "
            f"context of {context_length}"
        ),
    )


def freeze(
    run_dir: Path,
    *,
    plan: Plan,
    suite: Mapping[str, Any],
    source: ModelSource,
    model: LanguageModel,
    devices: Sequence[torch.device],
    vectors: Sequence[TraitVectors],
    tasks: Mapping[str, GenerationTask],
    shards: Sequence[Shard],
    batch_width: int,
    estimate: Mapping[str, Any],
) -> None:
    """Write everything that fixes the run; ``plan.json`` comes last and makes it a run.

    Raises:
        RunError: the disk is full or cannot be written.
    """
    for vector in vectors:
        with disk_errors(run_dir / "vectors"):
            save_vectors(vector, run_dir / "vectors" / f"{vector.trait}.safetensors")
    fingerprint = model.fingerprint.short
    write_table(run_dir / "prompts.parquet", prompts_table(plan, fingerprint))
    write_table(run_dir / "captures.parquet", captures_table(plan, vectors, model.n_layers, fingerprint))
    write_text(run_dir / "suite.yaml", yaml.safe_dump(dict(suite), sort_keys=False, allow_unicode=True))
    write_json(
        run_dir / "plan.json",
        {
            "format_version": FORMAT_VERSION,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": library_versions(),
            "model": {**asdict(source), "fingerprint": fingerprint, "digests": asdict(model.fingerprint)},
            "devices": list(map(str, devices)),
            "dtype": str(model.dtype).removeprefix("torch."),
            "packed_linears": sorted(model.linears.shapes),
            "compiled_steps": model.static_steps.wanted,
            "checkpoints": [checkpoint.name for checkpoint in model.anatomy.checkpoints],
            "traits": [
                {
                    "name": vector.trait,
                    "readout": vector.readout_name,
                    "verdict": vector.origin.verdict,
                    "covered": None if vector.covered.all() else list(vector.covered_names),
                }
                for vector in vectors
            ],
            "batch_width": batch_width,
            "generations": {
                task.id: {
                    "checkpoints": list(task.checkpoints),
                    "traits": sorted(task.traits),
                    "internals": None if task.opened is None else _described_layers(task.opened),
                    "steering": None if task.dose is None else task.dose.described(),
                }
                for task in tasks.values()
            },
            "shards": [shard.described() for shard in shards],
            "estimate": dict(estimate),
            "suite": dict(suite),
            "inputs": {name: _sha256(run_dir / name) for name in _input_files(run_dir)},
        },
    )


def read_frozen(run_dir: Path) -> FrozenRun:
    """Read a run's inputs back and check that nothing changed since it began.

    Raises:
        InputError: no run, or an input was changed; names the file and, for the suite, the difference.
    """
    described = read_frozen_plan(run_dir)
    _refuse_changed_inputs(run_dir, described)
    given = described["model"]
    source = ModelSource(**{name: given[name] for name in ModelSource.__dataclass_fields__})
    names = [trait["name"] for trait in described["traits"]]
    return FrozenRun(
        run_dir=run_dir,
        source=source,
        fingerprint=given["fingerprint"],
        devices=tuple(described["devices"]),
        dtype=described["dtype"],
        packed_linears=frozenset((n_out, n_in) for n_out, n_in in described["packed_linears"]),
        compiled_steps=described["compiled_steps"],
        suite=described["suite"],
        checkpoints=tuple(described["checkpoints"]),
        vectors=tuple(load_vectors(run_dir / "vectors" / f"{name}.safetensors") for name in names),
        tasks=_read_tasks(run_dir, described["generations"]),
        shards=tuple(Shard.from_described(shard) for shard in [*described["shards"], *read_retries(run_dir)]),
        batch_width=described["batch_width"],
        estimate=described["estimate"],
    )


def add_retry(run_dir: Path, shards: Iterable[Shard]) -> None:
    """Add shards behind those that the run has."""
    number = 1 + len(list(run_dir.glob("retry-*.json")))
    write_json(run_dir / f"retry-{number:04d}.json", {"shards": [shard.described() for shard in shards]})


def suite_difference(frozen: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """What differs between two suites, one line a field: ``field: frozen → given``."""
    return list(_differences(frozen, given, ""))


def _differences(frozen: Any, given: Any, path: str) -> Iterable[str]:
    if isinstance(frozen, Mapping) and isinstance(given, Mapping):
        for key in dict.fromkeys([*frozen, *given]):
            yield from _differences(frozen.get(key), given.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(frozen, list) and isinstance(given, list) and len(frozen) == len(given):
        for index, (before, after) in enumerate(zip(frozen, given, strict=True)):
            yield from _differences(before, after, f"{path}[{index}]")
    elif frozen != given:
        yield f"{path}: {json.dumps(frozen, ensure_ascii=False)} → {json.dumps(given, ensure_ascii=False)}"


def _input_files(run_dir: Path) -> list[str]:
    vectors = sorted(f"vectors/{path.name}" for path in (run_dir / "vectors").glob("*.safetensors"))
    return ["suite.yaml", "prompts.parquet", "captures.parquet", *vectors]


def _refuse_changed_inputs(run_dir: Path, described: Mapping[str, Any]) -> None:
    for name, digest in described["inputs"].items():
        path = run_dir / name
        if not path.is_file():
            raise InputError(f"run {run_dir}: {name} is missing; a run continues only under its own inputs")
        if _sha256(path) == digest:
            continue
        shown = ""
        if name == "suite.yaml":
            try:
                changed = yaml.safe_load(path.read_text())
            except (yaml.YAMLError, UnicodeDecodeError):
                changed = None
            if isinstance(changed, dict):
                shown = ": " + "; ".join(suite_difference(described["suite"], changed)[:5])
        raise InputError(f"run {run_dir}: {name} was changed since the run began{shown}; undo it, or start a new run")


def _read_tasks(run_dir: Path, kept: Mapping[str, Mapping[str, Any]]) -> dict[str, GenerationTask]:
    tasks: dict[str, GenerationTask] = {}
    for row in pq.read_table(run_dir / "prompts.parquet").to_pylist():
        identity = row["generation"]
        if identity in tasks:
            continue
        prompt = Rendered(tuple(row["token_ids"]), tuple(row["roles"]), tuple(row["turns"]))
        sampling = Sampling(row["temperature"], row["top_p"], row["top_k"])
        given = None if row["response_ids"] is None else tuple(row["response_ids"])
        sampled = given is None and not sampling.greedy
        tasks[identity] = GenerationTask(
            id=identity,
            prompt=prompt,
            response_ids=given,
            max_new_tokens=row["max_new_tokens"],
            sampling=sampling,
            seed=row_seed(row["seed"], prompt.token_ids, row["sample"]) if sampled else None,
            traits=frozenset(kept[identity]["traits"]),
            checkpoints=tuple(kept[identity]["checkpoints"]),
            opened=_layers_from_described(kept[identity]["internals"]),
            dose=Dose.from_described(kept[identity]["steering"]),
        )
    return tasks


def _described_layers(opened: OpenLayers) -> dict[str, Any]:
    tensors = {str(layer): list(names) for layer, names in opened.tensors.items()}
    return {"tensors": tensors, "dtype": "float32" if opened.float32 else "model"}


def _layers_from_described(described: Mapping[str, Any] | None) -> OpenLayers | None:
    if described is None:
        return None
    tensors = {int(layer): tuple(names) for layer, names in described["tensors"].items()}
    return OpenLayers(tensors, described["dtype"] == "float32")


def prompts_table(plan: Plan, fingerprint: str) -> pa.Table:
    """``prompts.parquet``: every prompt as it was rendered, and the settings of its generation."""
    rendered_on = datetime.now(UTC)
    rows = []
    # scores and internals share a prompt
    each = {(c.experiment, c.prompt_id, c.sample, c.alpha): c for c in plan.captures}
    for capture in each.values():
        generation, key = capture.generation, capture.generation.key
        rows.append(
            {
                "generation": key.identity(fingerprint),
                "experiment": capture.experiment,
                "prompt_id": capture.prompt_id,
                "sample": capture.sample,
                "messages": list(generation.messages),
                "token_ids": list(generation.prompt.token_ids),
                "roles": list(generation.prompt.roles),
                "turns": list(generation.prompt.turns),
                "response_ids": None if key.response_ids is None else list(key.response_ids),
                "max_new_tokens": key.max_new_tokens,
                "temperature": key.temperature,
                "top_p": key.top_p,
                "top_k": key.top_k,
                "seed": key.seed,
                "rendered_on": rendered_on,
            }
        )
    return pa.Table.from_pylist(rows, PROMPTS)


def captures_table(plan: Plan, vectors: Sequence[TraitVectors], n_layers: int, fingerprint: str) -> pa.Table:
    """``captures.parquet``: what every experiment asks of which generation."""
    by_trait = {vector.trait: vector for vector in vectors}
    rows = []
    for capture in plan.captures:
        layers = capture.resolved_layers(n_layers, lambda trait: by_trait[trait].readout_layer)
        rows.append(
            {
                "generation": capture.generation.key.identity(fingerprint),
                "experiment": capture.experiment,
                "prompt_id": capture.prompt_id,
                "sample": capture.sample,
                "steer_trait": capture.steer_trait,
                "alpha": capture.alpha,
                "kind": capture.kind,
                "layers": sorted(layers),
                "traits": list(capture.traits),
                "keep": list(capture.keep) if capture.kind == "internals" else None,
            }
        )
    return pa.Table.from_pylist(rows, CAPTURES)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
