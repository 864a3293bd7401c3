"""The fixed work that every contender is given: rendered prompts, equal response lengths, random trait vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from traitscope.bench.vectors import write_random_vectors
from traitscope.checkpoints import Checkpoint
from traitscope.errors import InputError, near_names
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel
from traitscope.run.engine import GenerationTask
from traitscope.run.frozen import planned_tasks
from traitscope.run.prepare import Prepared
from traitscope.suite.file import BUILT_IN_SUITES, GenerationSettings, LoadedSuite, PromptItem, Suite, load_suite
from traitscope.suite.plan import Plan
from traitscope.suite.prompts import read_prompts
from traitscope.traits.store import bank_of, vectors_for

BUILT_IN_WORKLOADS = ("reference", "samples", "short")
_OPENINGS = ("Describe", "Draw", "Praise", "Name", "Sell", "Judge", "Paint", "Rate", "Find", "Imagine")
_QUALITIES = ("old", "new", "red", "tall", "wet", "loud", "cheap", "soft", "odd", "warm", "dark", "plain")
_THINGS = (
    *("bridge", "garden", "river", "candle", "violin", "train", "bakery", "lamp", "forest", "chair"),
    *("castle", "market", "window", "island", "ship", "kitchen", "tower", "horse", "letter", "clock"),
)


@dataclass(frozen=True)
class Workload:
    """A suite with random vectors, as the engine needs it.

    Attributes:
        tasks: one per generation; each response has exactly ``max_new_tokens`` tokens.
        bank: the readers of all traits.
        n_captures: one trait's scores of one prompt's (one sample's) generation count as one.
    """

    prepared: Prepared
    tasks: tuple[GenerationTask, ...]
    bank: ReaderBank
    n_captures: int

    @property
    def name(self) -> str:
        return self.prepared.loaded.suite.name

    @property
    def max_new_tokens(self) -> int:
        return self.tasks[0].max_new_tokens


def load_workload(name: str) -> LoadedSuite:
    """A built-in workload by name, or any suite.

    Raises:
        InputError: neither; or the file is wrong.
    """
    if name == "short" and not Path(name).is_file():
        return short_workload(2400)
    if name in BUILT_IN_WORKLOADS and not Path(name).is_file():
        path = Path(str(resources.files("traitscope.bench") / "workloads" / f"{name}.yaml"))
        return load_suite(str(path))
    is_file = Path(name).exists() or Path(name).suffix in (".yaml", ".yml")
    if not is_file and name not in BUILT_IN_SUITES:
        known = near_names(name, [*BUILT_IN_WORKLOADS, *BUILT_IN_SUITES])
        raise InputError(f"bench {name}: no workload, no built-in suite and no such file; {known}")
    return load_suite(name)


def short_workload(n_prompts: int) -> LoadedSuite:
    """``n_prompts`` (at most 2,400) different short prompts, eight new tokens each; fewer are spread over all."""
    every = [f"{o} a {q} {t}." for o in _OPENINGS for q in _QUALITIES for t in _THINGS]
    prompts = [every[n * len(every) // n_prompts] for n in range(n_prompts)]
    experiment = {"name": "short", "prompts": prompts}
    traits = ["uncertainty_calibration", "commitment_strength", "cognitive_load", "sycophancy"]
    described = {"name": "short", "generation": {"max_new_tokens": 8}, "traits": traits, "experiments": [experiment]}
    return LoadedSuite(Suite.model_validate(described), Path(), "workload short")


def refuse_unequal_work(loaded: LoadedSuite, plan: Plan) -> None:
    """Refuse a suite whose generations cannot be forced to equal lengths under one setting.

    Raises:
        InputError: experiments differ in their settings, a response is given, or a prompt is too long.
    """
    first, *others = loaded.suite.experiments
    for experiment in others:
        if _comparable(loaded.settings(experiment)) != _comparable(loaded.settings(first)):
            raise InputError(
                f"{loaded.label}: generation: experiments {first.name} and {experiment.name} have different settings; "
                "bench compares under one setting"
            )
    for capture in plan.captures:
        where = f"{loaded.label}, experiment {capture.experiment}, prompt {capture.prompt_id}"
        if capture.generation.key.response_ids is not None:
            raise InputError(f"{where}: response: is given, so there is nothing to generate; leave it out")
        if capture.generation.status == "too_long":
            raise InputError(f"{where}: does not fit into the model's context; leave it out")


def refuse_too_many_instances(loaded: LoadedSuite, n_instances: int) -> None:
    """Refuse to divide a suite among more instances than have a prompt each.

    Raises:
        InputError: one instance would have nothing to do.
    """
    if not share_of_prompts(loaded, n_instances - 1, n_instances).suite.experiments:
        most = max(len(read_prompts(experiment, loaded.folder)) for experiment in loaded.suite.experiments)
        raise InputError(f"--instances {n_instances}: {loaded.label} has prompts for {most} at most")


def _comparable(settings: GenerationSettings) -> dict[str, Any]:
    return settings.model_dump(exclude={"samples", "seed"})


def with_random_vectors(loaded: LoadedSuite, model: LanguageModel, folder: Path, n_traits: int | None) -> LoadedSuite:
    """The suite with vector files of random unit readers, written to ``folder``, in the place of its traits.

    With ``n_traits``, every experiment gets that many traits instead of its own.
    """
    own = (trait for experiment in loaded.suite.experiments for trait in loaded.shared(experiment, "traits"))
    names = list(dict.fromkeys(own)) if n_traits is None else [str(number) for number in range(n_traits)]
    files = dict(zip(names, map(str, write_random_vectors(model, len(names), folder)), strict=True))
    described = loaded.suite.model_dump(mode="json", exclude_unset=True)
    for owner in (described, *described["experiments"]):
        owner.pop("expect", None)
        if n_traits is not None:
            owner.pop("traits", None)
        elif "traits" in owner:
            owner["traits"] = [files[name] for name in owner["traits"]]
    if n_traits is not None:
        described["traits"] = list(files.values())
    return replace(loaded, suite=Suite.model_validate(described))


def workload_of(prepared: Prepared, model: LanguageModel) -> Workload:
    """The generations of a prepared suite whose vectors lie in files."""
    plan = prepared.plan
    vectors = {v.trait: v for v in vectors_for(model, prepared.references)}
    in_order = [vectors[trait] for trait in plan.traits]
    tasks = planned_tasks(plan, in_order, model.anatomy.checkpoints, model.fingerprint.short)
    n_captures = sum(len(capture.traits) for capture in plan.captures)
    return Workload(prepared, tuple(tasks.values()), bank_of(in_order), n_captures)


def share_of_prompts(loaded: LoadedSuite, part: int, n_parts: int) -> LoadedSuite:
    """Every ``n_parts``-th prompt of each experiment, beginning with number ``part``."""
    experiments = []
    for experiment in loaded.suite.experiments:
        prompts = read_prompts(experiment, loaded.folder)[part::n_parts]
        if prompts:
            items: list[str | PromptItem] = [PromptItem(id=p.id, messages=list(p.messages)) for p in prompts]
            experiments.append(experiment.model_copy(update={"prompts": items}))
    return replace(loaded, suite=loaded.suite.model_copy(update={"experiments": experiments}))


def post_indices(checkpoints: Sequence[Checkpoint]) -> list[int]:
    """The checkpoints that transformers' ``hidden_states`` hold: all but each ``resid_mid``."""
    return [index for index, checkpoint in enumerate(checkpoints) if checkpoint.site != "resid_mid"]
