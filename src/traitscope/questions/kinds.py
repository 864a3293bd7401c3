"""The registry of questions; the module of a kind is imported when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from traitscope.errors import InputError, near_names
from traitscope.questions.answer import Answer
from traitscope.questions.options import QuestionOptions

Question = Callable[[Path, QuestionOptions], Answer]


@dataclass(frozen=True)
class Kind:
    """Where a question lives, as ``module:function``, and what it asks in one line."""

    place: str
    asks: str

    def load(self) -> Question:
        module, function = self.place.split(":")
        return getattr(import_module(f"traitscope.questions.{module}"), function)


KINDS: dict[str, Kind] = {
    "attention-decay": Kind("attention_decay:ask_attention_decay", "how long do heads keep looking at the prompt?"),
    "superposition": Kind("superposition:ask_superposition", "do traits share directions more than chance would?"),
    "emergence": Kind("emergence:ask_emergence", "from where on can a trait be read beyond embeddings and words?"),
    "commitment-point": Kind("commitment:ask_commitment", "where does a response settle on a trait?"),
    "drift": Kind("drift:ask_drift", "does a trait rise or fall along a response, and from turn to turn?"),
    "instruction-confound": Kind(
        "confound:ask_confound", "does a reader rise with the behaviour, or with an instruction's words?"
    ),
    "dose-response": Kind("dose_response:ask_dose_response", "does a trait's score follow the dose of steering?"),
}


def find_kind(name: str) -> Kind:
    """The kind called ``name``.

    Raises:
        InputError: there is none; near names are offered.
    """
    if name not in KINDS:
        raise InputError(f"--kind {name!r} is unknown; {near_names(name, KINDS)}")
    return KINDS[name]


def answer_question(kind: str, run_dir: Path, options: QuestionOptions) -> Answer:
    """Ask a run a question.

    Raises:
        InputError: unknown kind, not a run directory, or a run that lacks what the question needs.
    """
    return find_kind(kind).load()(run_dir, options)
