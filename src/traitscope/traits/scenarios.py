"""Scenario sets: contrastive texts from which a trait's direction is fitted."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from traitscope.yaml_file import read_model

Split = Literal["train", "dev", "test"]
Style = Literal["person", "valence", "length", "register"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pole(_Strict):
    """One end of a trait."""

    name: str
    description: str


class Pair(_Strict):
    """The same prompt answered at both poles.

    ``crossed`` names the style in which the two responses differ beside the trait, in either direction: ``person``
    when one is in the first person and the other impersonal.
    """

    topic: str
    prompt: str = Field(min_length=1)
    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)
    crossed: Style | None = None


class Splits(_Strict):
    train: list[Pair] = Field(min_length=8)
    dev: list[Pair] = []
    test: list[Pair] = []


class Prefills(_Strict):
    """Beginnings of a response that move a model towards each pole, whatever it is asked. Fitting never reads them."""

    positive: list[str] = Field(min_length=1)
    negative: list[str] = Field(min_length=1)


class Instructions(_Strict):
    """System prompts that ask a chat model for each pole. Fitting never reads them."""

    positive: list[str] = Field(min_length=1)
    negative: list[str] = Field(min_length=1)


class Yardstick(_Strict):
    """A lexical measure of a response that should move with the trait.

    Exactly one of three forms: ``words`` (their occurrences per 100 words; entries may be phrases),
    ``openers`` (whether the response begins with one of them) or ``letters_per_word``.
    ``rises`` says with which pole the measure rises.
    """

    name: str
    words: list[str] = []
    openers: list[str] = []
    letters_per_word: bool = False
    rises: Literal["positive", "negative"] = "positive"

    @model_validator(mode="after")
    def _one_form(self) -> Yardstick:
        if [bool(self.words), bool(self.openers), self.letters_per_word].count(True) != 1:
            raise ValueError("give exactly one of words, openers and letters_per_word")
        return self


class ScenarioSet(_Strict):
    """All texts of one trait, divided by topic into train, dev and a test split that fitting never reads.

    ``related`` names traits that are expected to go along with this one or against it, each with the reason; it is
    declared before anything is fitted.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")
    description: str
    positive: Pole
    negative: Pole
    related: dict[str, str] = {}
    stock_phrases: dict[Split, list[str]] = {}
    prefills: Prefills | None = None
    instructions: Instructions | None = None
    yardstick: Yardstick | None = None
    splits: Splits

    def digest(self) -> str:
        """SHA-256 of everything in the set that fitting may read."""
        read = self.model_dump_json(exclude={"related", "prefills", "instructions", "yardstick"})
        return hashlib.sha256(read.encode()).hexdigest()


class NeutralPrompts(_Strict):
    """Everyday prompts whose replies say what an ordinary score is."""

    name: str
    prompts: list[str] = Field(min_length=8)

    def digest(self) -> str:
        """SHA-256 of the prompts."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def library_folder() -> Path:
    """Where the built-in scenario sets lie."""
    return Path(str(resources.files("traitscope.traits") / "library"))


def library_names() -> list[str]:
    """The traits that come with traitscope."""
    return sorted(path.stem for path in library_folder().glob("*.yaml") if path.stem != "neutral")


def load_scenarios(path: Path) -> ScenarioSet:
    """A scenario file.

    Raises:
        InputError: the file is missing or wrong; names file, line and key.
    """
    return read_model(path, ScenarioSet, "scenario file")


def library_scenarios(name: str) -> ScenarioSet:
    """A built-in scenario set by its name."""
    return load_scenarios(library_folder() / f"{name}.yaml")


def load_neutral() -> NeutralPrompts:
    """The built-in neutral prompts."""
    return read_model(library_folder() / "neutral.yaml", NeutralPrompts, "neutral prompts")
