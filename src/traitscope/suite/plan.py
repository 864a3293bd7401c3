"""What a suite comes down to: every prompt rendered once, equal generations merged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from traitscope.errors import InputError
from traitscope.suite.file import Experiment, GenerationSettings, LoadedSuite
from traitscope.suite.layers import LayerSpec, select_layers
from traitscope.suite.prompts import Message, Prompt, read_prompts
from traitscope.suite.rendering import (
    PromptStyle,
    Rendered,
    check_template_arguments,
    render,
    tokenise_response,
)
from traitscope.tensor_names import TENSORS, TensorName

Positions = Literal["prompt", "response", "all"]


@dataclass(frozen=True)
class PlannedDose:
    """What a generation is steered by, before readouts are known; ``layers`` is the suite's, as JSON."""

    trait: str
    alpha: float
    layers: str
    positions: Positions

    def resolved_layers(self, n_layers: int, readout_layer: Callable[[str], int]) -> tuple[int, ...]:
        """The absolute layers; ``readout`` means the trait's readout layer."""
        return tuple(sorted(select_layers(json.loads(self.layers), n_layers, [readout_layer(self.trait)])))


@dataclass(frozen=True)
class GenerationKey:
    """What makes two generations the same. Settings that greedy decoding never reads are left out."""

    token_ids: tuple[int, ...]
    response_ids: tuple[int, ...] | None
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    sample: int
    dose: PlannedDose | None = None

    def identity(self, model_fingerprint: str) -> str:
        """Twenty hexadecimal digits: the generation's id under this model."""
        values = [list(value) if isinstance(value, tuple) else value for value in self._values()]
        dose = [] if self.dose is None else [asdict(self.dose)]
        described = json.dumps([model_fingerprint, *values, *dose])
        return hashlib.sha256(described.encode()).hexdigest()[:20]

    def _values(self) -> tuple[Any, ...]:
        return (
            self.token_ids,
            self.response_ids,
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            self.top_k,
            self.seed,
            self.sample,
        )


@dataclass
class PlannedGeneration:
    """One generation and everything that the suite asks of it."""

    key: GenerationKey
    prompt: Rendered
    messages: tuple[Message, ...]
    status: Literal["planned", "too_long"]
    captures: list[PlannedCapture] = field(default_factory=list, repr=False, compare=False)

    @property
    def n_prompt(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def most_response_tokens(self) -> int:
        given = self.key.response_ids
        return self.key.max_new_tokens if given is None else len(given)

    @property
    def traits(self) -> set[str]:
        return {trait for capture in self.captures for trait in capture.traits}

    def layers(self, n_layers: int, readout_layer: Callable[[str], int]) -> frozenset[int]:
        """The layers whose scores any of its captures asks for."""
        asked = (c.resolved_layers(n_layers, readout_layer) for c in self.captures if c.kind == "scores")
        return frozenset().union(*asked)

    def open_layers(self, n_layers: int, readout_layer: Callable[[str], int]) -> OpenLayers | None:
        """The layers that are opened and what is kept of each, of all captures together; None for no layer."""
        kept: dict[int, set[str]] = {}
        opening = [capture for capture in self.captures if capture.kind == "internals"]
        for capture in opening:
            for layer in capture.resolved_layers(n_layers, readout_layer):
                kept.setdefault(layer, set()).update(capture.keep)
        if not kept:
            return None
        tensors = {layer: tuple(name for name in TENSORS if name in kept[layer]) for layer in sorted(kept)}
        return OpenLayers(tensors, any(capture.float32 for capture in opening))


@dataclass(frozen=True)
class OpenLayers:
    """Layers that are opened for one generation: names of the kept tensors by layer.

    They are kept in the model's own dtype unless ``float32``.
    """

    tensors: dict[int, tuple[TensorName, ...]]
    float32: bool = False


@dataclass(frozen=True)
class PlannedCapture:
    """One thing that an experiment asks of one sample of one prompt: its scores, or open layers.

    ``keep`` and ``float32`` say which tensors of open layers are kept, and how; ``steer_trait`` and ``alpha`` which
    dose of the experiment's steering it is.
    """

    experiment: str
    prompt_id: str
    sample: int
    generation: PlannedGeneration
    kind: Literal["scores", "internals"]
    layers: LayerSpec
    traits: tuple[str, ...]
    keep: tuple[TensorName, ...] = ()
    float32: bool = False
    steer_trait: str | None = None
    alpha: float | None = None

    def resolved_layers(self, n_layers: int, readout_layer: Callable[[str], int]) -> frozenset[int]:
        """The absolute layers; ``readout`` means the readout layers of the experiment's traits."""
        return select_layers(self.layers, n_layers, [readout_layer(trait) for trait in self.traits])


@dataclass(frozen=True)
class Plan:
    """The whole suite, rendered and merged. No weights are needed to make it."""

    captures: tuple[PlannedCapture, ...]
    generations: tuple[PlannedGeneration, ...]
    traits: tuple[str, ...]

    @property
    def runnable(self) -> list[PlannedGeneration]:
        return [generation for generation in self.generations if generation.status == "planned"]

    @property
    def too_long(self) -> list[PlannedGeneration]:
        return [generation for generation in self.generations if generation.status == "too_long"]


def make_plan(
    loaded: LoadedSuite,
    tokenizer: Any,
    *,
    trait_name: Callable[[str], str],
    n_layers: int,
    context_length: int | None,
) -> Plan:
    """Read all prompts, render each once and merge what is equal.

    Args:
        trait_name: turns a trait reference of the suite (name or path) into its name.
        context_length: prompts that leave no room for the longest response within it are ``too_long``.

    Raises:
        InputError: anything that can be known to be wrong before a model is loaded.
    """
    merged: dict[GenerationKey, PlannedGeneration] = {}
    captures: list[PlannedCapture] = []
    for experiment in loaded.suite.experiments:
        references = tuple(dict.fromkeys(loaded.shared(experiment, "traits")))
        traits = tuple(dict.fromkeys(map(trait_name, references)))
        settings = loaded.settings(experiment)
        style = PromptStyle(*(loaded.shared(experiment, f) for f in ("system", "template", "base_template")))
        with _naming(f"{loaded.label}, experiment {experiment.name}"):
            _check_experiment(experiment, traits, n_layers)
            steered_trait = _steered_trait(experiment, dict(zip(references, map(trait_name, references), strict=True)))
            _check_steering(experiment, n_layers)
            _check_settings(settings, context_length)
            check_template_arguments(tokenizer, style)
            prompts = read_prompts(experiment, loaded.folder)
        for prompt in prompts:
            rendered = render(tokenizer, prompt.messages, style)
            response = None if prompt.response is None else tokenise_response(tokenizer, prompt.response)
            for alpha, dose in _doses(experiment, steered_trait):
                for key in _keys(rendered, response, settings, dose):
                    generation = merged.setdefault(key, _planned(key, rendered, prompt, context_length))
                    asked = _captures(experiment, prompt, generation, traits, alpha, steered_trait)
                    generation.captures += asked
                    captures += asked
    all_traits = tuple(dict.fromkeys(trait for capture in captures for trait in capture.traits))
    return Plan(tuple(captures), tuple(merged.values()), all_traits)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Put ``where`` in front of what is refused inside the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _doses(experiment: Experiment, trait: str | None) -> list[tuple[float | None, PlannedDose | None]]:
    """The experiment's doses; the dose 0 is the generation without any, so that it can be shared."""
    if (steer := experiment.steer) is None or trait is None:
        return [(None, None)]
    layers = json.dumps(steer.layers)
    return [
        (alpha, None if alpha == 0 else PlannedDose(trait, alpha, layers, steer.positions)) for alpha in steer.alpha
    ]


def _captures(
    experiment: Experiment,
    prompt: Prompt,
    generation: PlannedGeneration,
    traits: tuple[str, ...],
    alpha: float | None,
    steered_trait: str | None,
) -> list[PlannedCapture]:
    """What an experiment asks of one generation."""
    asked = partial(
        PlannedCapture,
        experiment.name,
        prompt.id,
        generation.key.sample,
        generation,
        steer_trait=steered_trait,
        alpha=alpha,
    )
    scores, internals = experiment.capture.scores, experiment.capture.internals
    captures = []
    if scores is not None:
        captures.append(asked("scores", scores.layers, traits))
    if internals is not None:
        float32 = internals.dtype == "float32"
        captures.append(asked("internals", internals.layers, traits, tuple(internals.keep), float32))
    return captures


def _check_experiment(experiment: Experiment, traits: Sequence[str], n_layers: int) -> None:
    for kind in ("scores", "internals"):
        if (asked := getattr(experiment.capture, kind)) is not None:
            with _naming(f"capture.{kind}.layers"):
                select_layers(asked.layers, n_layers, [])
    for expected in experiment.expect:
        if expected not in traits:
            raise InputError(f"expect: {expected} is not among the experiment's traits ({', '.join(traits)})")


def _steered_trait(experiment: Experiment, names: Mapping[str, str]) -> str | None:
    """The name of the trait whose steerer is added; ``names`` are those of the experiment's trait references.

    Raises:
        InputError: it is not among the experiment's traits, so that its vectors would not be there.
    """
    if experiment.steer is None:
        return None
    called = names.get(experiment.steer.trait, experiment.steer.trait)
    if called not in names.values():
        raise InputError(
            f"steer.trait: {called} is not among the experiment's traits ({', '.join(names.values())}); add it to them"
        )
    return called


def _check_steering(experiment: Experiment, n_layers: int) -> None:
    if experiment.steer is not None:
        with _naming("steer.layers"):
            select_layers(experiment.steer.layers, n_layers, [])


def _check_settings(settings: GenerationSettings, context_length: int | None) -> None:
    if context_length is not None and settings.max_new_tokens >= context_length:
        raise InputError(
            f"generation.max_new_tokens: {settings.max_new_tokens} leaves no room for a prompt in the model's "
            f"context of {context_length}"
        )


def _keys(
    rendered: Rendered, response: tuple[int, ...] | None, settings: GenerationSettings, dose: PlannedDose | None
) -> list[GenerationKey]:
    if response is not None:
        return [GenerationKey(rendered.token_ids, response, 0, 0.0, 1.0, 0, 0, 0, dose)]
    if settings.temperature == 0:
        return [GenerationKey(rendered.token_ids, None, settings.max_new_tokens, 0.0, 1.0, 0, 0, 0, dose)]
    return [
        GenerationKey(
            rendered.token_ids,
            None,
            settings.max_new_tokens,
            settings.temperature,
            settings.top_p,
            settings.top_k,
            settings.seed,
            sample,
            dose,
        )
        for sample in range(settings.samples)
    ]


def _planned(key: GenerationKey, rendered: Rendered, prompt: Prompt, context_length: int | None) -> PlannedGeneration:
    generation = PlannedGeneration(key, rendered, prompt.messages, "planned")
    if context_length is not None and generation.n_prompt + generation.most_response_tokens > context_length:
        generation.status = "too_long"
    return generation
