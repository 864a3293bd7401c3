"""The suite file: what to run, as typed fields."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from traitscope.errors import InputError, near_names
from traitscope.suite.layers import LayerSpec, layer_spec_problem
from traitscope.tensor_names import TENSORS, TensorName
from traitscope.yaml_file import Model, read_model

BUILT_IN_SUITES = ("overnight", "medium", "full", "confound")
BASE_TEMPLATE = "{prompt}\n\n"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GenerationSettings(_Strict):
    """How responses are generated."""

    max_new_tokens: int = Field(50, ge=1, description="longest response, in tokens")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="keep the likeliest tokens up to this probability")
    top_k: int = Field(0, ge=0, description="keep this many of the likeliest tokens; 0 keeps all")
    samples: int = Field(1, ge=1, description="responses per prompt")
    seed: int = Field(0, description="with the prompt and the sample number it fixes what is sampled")

    @model_validator(mode="after")
    def _greedy_is_one_sample(self) -> GenerationSettings:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples {self.samples} with temperature 0 would all be equal; set a temperature above 0")
        return self


class GenerationOverrides(_Strict):
    """The fields of ``generation`` that one experiment sets again."""

    max_new_tokens: int | None = Field(None, ge=1, description="longest response, in tokens")
    temperature: float | None = Field(None, ge=0, description="0 is greedy")
    top_p: float | None = Field(None, gt=0, le=1, description="keep the likeliest tokens up to this probability")
    top_k: int | None = Field(None, ge=0, description="keep this many of the likeliest tokens; 0 keeps all")
    samples: int | None = Field(None, ge=1, description="responses per prompt")
    seed: int | None = Field(None, description="with the prompt and the sample number it fixes what is sampled")


def _layers_with_a_form(layers: Any) -> Any:
    if problem := layer_spec_problem(layers):
        raise ValueError(problem)
    return layers


_Layers = Annotated[LayerSpec, BeforeValidator(_layers_with_a_form, json_schema_input_type=LayerSpec)]


class ScoresCapture(_Strict):
    """Scores, writes and norms."""

    layers: _Layers = Field("all", description="layers whose checkpoints are kept")


class InternalsCapture(_Strict):
    """Layers fully open: what attention and MLP computed."""

    layers: _Layers = Field("readout", description="layers that are opened")
    keep: list[TensorName] = Field(list(TENSORS), min_length=1, description="tensors that are kept")
    dtype: Literal["model", "float32"] = Field("model", description="the model's own, or float32")


class Capture(_Strict):
    """What is kept of an experiment's generations: scores, internals, or both; scores if nothing is said."""

    scores: ScoresCapture | None = Field(None, description="scores, writes and norms of these layers")
    internals: InternalsCapture | None = Field(None, description="these layers fully open")

    @model_validator(mode="before")
    @classmethod
    def _scores_unless_said_otherwise(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("internals") is None and given.get("scores") is None:
            return {**given, "scores": {}}
        return given


class Steer(_Strict):
    """Doses of steering: each is a generation of its own."""

    trait: str = Field(description="one of the experiment's traits")
    alpha: list[float] = Field(min_length=1, description="doses, in shares of the usual norm of the state; 0 is none")
    layers: _Layers = Field("readout", description="layers whose resid_post is pushed")
    positions: Literal["prompt", "response", "all"] = Field("response", description="whose states are pushed")

    @field_validator("alpha", mode="before", json_schema_input_type=float | Annotated[list[float], Field(min_length=1)])
    @classmethod
    def _one_or_several(cls, alpha: Any) -> Any:
        doses = alpha if isinstance(alpha, list) else [alpha]
        if any(isinstance(dose, (bool, str)) for dose in doses):
            raise ValueError("doses must be finite numbers")
        return doses

    @field_validator("alpha")
    @classmethod
    def _finite_and_different(cls, alpha: list[float]) -> list[float]:
        if not all(math.isfinite(dose) for dose in alpha):
            raise ValueError("doses must be finite numbers")
        if len(set(alpha)) < len(alpha):
            raise ValueError("a dose is listed twice")
        return alpha


class PromptItem(_Strict):
    """One prompt that is written in the suite itself or in a line of a .jsonl file."""

    id: str | None = Field(None, description="what results call it; its number if not given")
    prompt: str | None = Field(None, description="the text of one user message; this or messages")
    messages: list[dict[str, str]] | None = Field(None, description="a conversation: role and content of each turn")
    response: str | None = Field(None, description="given text to score instead of a generation")

    @model_validator(mode="after")
    def _one_form(self) -> PromptItem:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class _Shared(_Strict):
    system: str | None = Field(None, description="system prompt")
    template: dict[str, Any] = Field({}, description="arguments for the chat template")
    base_template: str = Field(BASE_TEMPLATE, description="how a model without chat template is prompted")
    traits: list[str] = Field([], description="names, scenario files (.yaml) or vector files (.safetensors)")

    @field_validator("base_template")
    @classmethod
    def _holds_the_prompt(cls, base_template: str) -> str:
        if "{prompt}" not in base_template:
            raise ValueError("must contain {prompt}")
        return base_template


class Experiment(_Shared):
    """A set of prompts and what to keep of them; fields of the suite may be set again."""

    name: str = Field(description="what results call it; each name once")
    prompts: str | list[str | PromptItem] = Field(description="a .txt, .jsonl, .csv or .parquet file, or a list")
    generation: GenerationOverrides = Field(GenerationOverrides(), description="what differs from the suite's")
    expect: dict[str, Literal["high", "low"]] = Field({}, description="side of neutral where a trait's mean should lie")
    capture: Capture = Field(Capture(), description="what is kept of these generations")
    steer: Steer | None = Field(None, description="push the stream along a trait's steerer while generating")


class Suite(_Shared):
    """A suite file."""

    name: str = Field(description="letters, digits, dots, dashes, underscores: it names the run directory")
    model: str = Field("smollm2-135m", description="the embedded model, a Hugging Face id, a directory or a GGUF file")
    revision: str | None = Field(None, description="revision of a Hugging Face model")
    generation: GenerationSettings = Field(GenerationSettings(), description="how responses are generated")
    experiments: list[Experiment] = Field(min_length=1, description="sets of prompts and what to keep of them")

    @field_validator("name")
    @classmethod
    def _name_is_a_folder_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError("use letters, digits, dots, dashes and underscores: it names the run directory")
        return name

    @model_validator(mode="after")
    def _experiments_are_complete(self) -> Suite:
        names = [experiment.name for experiment in self.experiments]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two experiments are named {repeated[0]!r}")
        for experiment in self.experiments:
            if not (experiment.traits or self.traits):
                raise ValueError(f"experiment {experiment.name!r} has no traits; list them under traits")
        return self


def suite_schema() -> dict[str, Any]:
    """The JSON Schema of a suite file, for editors and for the documentation."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Suite.model_json_schema()}


@dataclass(frozen=True)
class LoadedSuite:
    """A suite, the folder that its relative paths start from, and what messages call it."""

    suite: Suite
    folder: Path
    label: str

    def settings(self, experiment: Experiment) -> GenerationSettings:
        """The suite's generation settings with the experiment's on top.

        Raises:
            InputError: together they make no sense.
        """
        merged = {
            **self.suite.generation.model_dump(),
            **experiment.generation.model_dump(exclude_none=True),
        }
        return checked(GenerationSettings, merged, f"{self.label}, experiment {experiment.name}, generation")

    def shared(self, experiment: Experiment, field: str) -> Any:
        """``system``, ``template``, ``base_template`` or ``traits`` as it holds for the experiment."""
        owner = experiment if field in experiment.model_fields_set else self.suite
        return getattr(owner, field)

    def resolved(self) -> dict[str, Any]:
        """The suite with every default written out and every experiment complete in itself; it can be loaded
        again."""
        described = self.suite.model_dump(mode="json")
        for experiment, entry in zip(self.suite.experiments, described["experiments"], strict=True):
            entry["generation"] = self.settings(experiment).model_dump(mode="json")
            for field in ("system", "template", "base_template", "traits"):
                entry[field] = self.shared(experiment, field)
        return described

    def with_overrides(self, *, model: str | None = None, max_new_tokens: int | None = None) -> LoadedSuite:
        """The suite with what the command line sets on top, in every experiment."""
        changes: dict[str, Any] = {}
        if model is not None:
            changes["model"] = model
        if max_new_tokens is not None:
            updated = {"max_new_tokens": max_new_tokens}
            changes["generation"] = self.suite.generation.model_copy(update=updated)
            changes["experiments"] = [
                e.model_copy(update={"generation": e.generation.model_copy(update=updated)})
                for e in self.suite.experiments
            ]
        return replace(self, suite=self.suite.model_copy(update=changes))


def checked(model: type[Model], values: Any, where: str) -> Model:
    """Values as a pydantic model.

    Raises:
        InputError: they are wrong; names ``where`` and the field.
    """
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise InputError(f"{where}: unknown field {field!r}; known: {', '.join(model.model_fields)}") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(f"{where}: {field + ': ' if field else ''}{message}") from None


def built_in_suite_folder(name: str) -> Path:
    """The folder with a built-in suite's files.

    Raises:
        InputError: there is no built-in suite of that name.
    """
    if name not in BUILT_IN_SUITES:
        raise InputError(f"suite {name}: no built-in suite; {near_names(name, BUILT_IN_SUITES)}")
    return Path(str(resources.files("traitscope.suite") / "builtin" / name))


def load_suite(name_or_path: str) -> LoadedSuite:
    """A built-in suite by name, or a suite file.

    Raises:
        InputError: no such suite, or the file is wrong; names file, line and key.
    """
    if name_or_path in BUILT_IN_SUITES and not Path(name_or_path).is_file():
        path = built_in_suite_folder(name_or_path) / "suite.yaml"
    else:
        path = Path(name_or_path)
        if path.is_dir():
            path = path / "suite.yaml"
        if not path.exists() and path.suffix not in (".yaml", ".yml"):
            raise InputError(
                f"suite {name_or_path}: no such file and no built-in suite; "
                + near_names(name_or_path, BUILT_IN_SUITES)
            )
    return LoadedSuite(read_model(path, Suite, "suite"), path.parent, f"suite {path}")
