"""``capture()``: the same pass over the model, in memory, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from traitscope.captures.calibration import TraitCalibration
from traitscope.captures.internals import held_tensors
from traitscope.captures.reading import Run, frame_of
from traitscope.errors import InputError
from traitscope.model.facts import facts_of_module
from traitscope.model.internals import refuse_unreadable
from traitscope.model.loading import LanguageModel
from traitscope.run.batching import batch_width, make_batches, run_prefix
from traitscope.run.engine import Engine
from traitscope.run.frozen import captures_table, planned_tasks, prompts_table, too_long_outcome
from traitscope.run.pace import remembered_pace
from traitscope.run.tables import shard_internals, shard_tables
from traitscope.suite.file import (
    BASE_TEMPLATE,
    Capture,
    Experiment,
    GenerationSettings,
    InternalsCapture,
    LoadedSuite,
    PromptItem,
    ScoresCapture,
    Suite,
    checked,
)
from traitscope.suite.plan import make_plan
from traitscope.suite.prompts import Message
from traitscope.traits.store import TraitReference, find_trait, vectors_for
from traitscope.traits.vectors import TraitVectors

Prompts = Sequence[str | Sequence[Message] | Mapping[str, object]]


def capture(
    model: LanguageModel,
    prompts: Prompts,
    traits: Sequence[str | TraitVectors],
    *,
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    samples: int = 1,
    seed: int = 0,
    system: str | None = None,
    base_template: str = BASE_TEMPLATE,
    internals: Mapping[str, object] | None = None,
    batch_size: int | None = None,
) -> Run:
    """Generate from ``prompts`` and score every token on ``traits`` at every checkpoint, in memory.

    Args:
        model: from ``load_model``.
        prompts: strings, lists of messages, or mappings as in a .jsonl file (``prompt`` or ``messages``,
            with ``id`` and a given ``response`` if wanted).
        traits: names, scenario files, vector files, or vectors that are fitted already.
        internals: layers to open, as in a suite: ``{"layers": [15], "keep": ["pattern", "neurons"]}``; read them with
            ``Run.internals``.
        batch_size: rows generated together; None takes what fits in memory.

    Returns:
        What ``open_run`` returns for a run directory.

    Raises:
        InputError: unknown trait, empty prompt, wrong settings, vectors of another model.
    """
    if internals is not None and not isinstance(internals, Mapping):
        raise InputError('capture: internals must be a mapping such as {"layers": [15], "keep": ["pattern"]}')
    for name, given in (("prompts", prompts), ("traits", traits)):
        if isinstance(given, (str, Mapping)):
            raise InputError(f"capture: {name} must be a list")
        if not given:
            raise InputError(f"capture: {name} is empty")
    fitted = _vectors(model, traits, base_template)
    settings = checked(
        GenerationSettings,
        {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "samples": samples,
            "seed": seed,
        },
        "capture",
    )
    plan = make_plan(
        LoadedSuite(
            Suite(
                name="capture",
                generation=settings,
                system=system,
                base_template=base_template,
                traits=[vectors.trait for vectors in fitted],
                experiments=[
                    Experiment(name="capture", prompts=[_item(prompt) for prompt in prompts], capture=_asked(internals))
                ],
            ),
            Path(),
            "capture",
        ),
        model.tokenizer,
        trait_name=lambda name: name,
        n_layers=model.n_layers,
        context_length=model.context_length,
    )
    fingerprint = model.fingerprint.short
    checkpoints = model.anatomy.checkpoints
    tasks = planned_tasks(plan, fitted, checkpoints, fingerprint)
    too_long = {generation.key.identity(fingerprint) for generation in plan.too_long}
    runnable = [task for task in tasks.values() if task.id not in too_long]
    for task in runnable:
        if task.opened is not None:
            refuse_unreadable(model, task.opened.tensors)
    pace = remembered_pace(fingerprint, model.device, model.dtype)
    facts = facts_of_module(model.module)
    width = batch_size or batch_width(facts, model.device, model.dtype.itemsize, runnable, pace)
    engine = Engine(model, fitted, width=width, run_prefix=run_prefix(runnable))
    outcomes = [outcome for batch in make_batches(runnable) for outcome in engine.run_batch(batch)]
    outcomes += [too_long_outcome(tasks[identity], model.context_length) for identity in sorted(too_long)]
    tables: dict[str, pa.Table] = {
        **shard_tables(outcomes, [v.trait for v in fitted], [v.readout for v in fitted], checkpoints),
        "prompts": prompts_table(plan, fingerprint),
        "captures": captures_table(plan, fitted, model.n_layers, fingerprint),
    }
    return Run(
        {name: frame_of(table) for name, table in tables.items()},
        {vectors.trait: _calibration(vectors) for vectors in fitted},
        tuple(checkpoint.name for checkpoint in checkpoints),
        title=f"capture of {len(prompts)} prompts with {model.name}",
        open_tensors=lambda: held_tensors(shard_internals(outcomes)),
    )


def _vectors(model: LanguageModel, traits: Sequence[str | TraitVectors], base_template: str) -> list[TraitVectors]:
    references: list[TraitReference] = [find_trait(t, Path()) for t in traits if isinstance(t, str)]
    found = {v.trait: v for v in vectors_for(model, references, base_template=base_template)}
    found |= {vectors.trait: vectors for vectors in traits if isinstance(vectors, TraitVectors)}
    for vectors in found.values():
        if vectors.reader.shape != (len(model.anatomy.checkpoints), model.anatomy.d_model):
            raise InputError(f"capture: the vectors of {vectors.trait} do not fit this model's checkpoints")
    return list(found.values())


def _asked(internals: Mapping[str, object] | None) -> Capture:
    if internals is None:
        return Capture()
    opened = checked(InternalsCapture, dict(internals), "capture, internals")
    return Capture(scores=ScoresCapture(), internals=opened)


def _item(prompt: str | Sequence[Message] | Mapping[str, object]) -> str | PromptItem:
    if isinstance(prompt, str):
        return prompt
    given = dict(prompt) if isinstance(prompt, Mapping) else {"messages": list(prompt)}
    return checked(PromptItem, given, "capture, prompts")


def _calibration(vectors: TraitVectors) -> TraitCalibration:
    return TraitCalibration(
        trait=vectors.trait,
        poles=vectors.poles,
        verdict=vectors.origin.verdict,
        checkpoints=vectors.checkpoints,
        readout=vectors.readout_name,
        mean={region: values.numpy() for region, values in vectors.calibration.mean.items()},
        std={region: values.numpy() for region, values in vectors.calibration.std.items()},
        neutral_trajectory=vectors.calibration.trajectory.numpy(),
    )
