"""The registry of questions; the module of a kind is imported when it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from traitscope.errors import InputError, near_names
from traitscope.questions.answer import Answer
from traitscope.questions.options import FLAGS, QuestionOptions

Question = Callable[[Path, QuestionOptions], Answer]


@dataclass(frozen=True)
class Kind:
    """Where a question lives, as ``module:function``, what it asks in one line, and the options that it reads."""

    place: str
    asks: str
    reads: tuple[str, ...]

    def load(self) -> Question:
        module, function = self.place.split(":")
        return getattr(import_module(f"traitscope.questions.{module}"), function)


_OF_RESPONSES = ("traits", "experiments", "seed")
_OF_VECTORS = ("traits", "seed")

KINDS: dict[str, Kind] = {
    "attention-decay": Kind(
        "attention_decay:ask_attention_decay",
        "how long do heads keep looking at the prompt?",
        ("experiments", "layer", "head", "position", "token", "seed"),
    ),
    "superposition": Kind(
        "superposition:ask_superposition", "do traits share directions more than chance would?", _OF_VECTORS
    ),
    "emergence": Kind(
        "emergence:ask_emergence", "from where on can a trait be read beyond embeddings and words?", _OF_VECTORS
    ),
    "commitment-point": Kind("commitment:ask_commitment", "where does a response settle on a trait?", _OF_RESPONSES),
    "drift": Kind(
        "drift:ask_drift", "does a trait rise or fall along a response, and from turn to turn?", _OF_RESPONSES
    ),
    "instruction-confound": Kind(
        "confound:ask_confound", "does a reader rise with the behaviour, or with an instruction's words?", _OF_RESPONSES
    ),
    "dose-response": Kind(
        "dose_response:ask_dose_response", "does a trait's score follow the dose of steering?", _OF_RESPONSES
    ),
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
        InputError: unknown kind, an option that it does not read, not a run directory, or a run that lacks what the
            question needs.
    """
    found = find_kind(kind)
    _refuse_unread(kind, found, options)
    return found.load()(run_dir, options)


def _refuse_unread(name: str, kind: Kind, options: QuestionOptions) -> None:
    for option in options.given:
        if option not in kind.reads:
            readers = ", ".join(other for other, known in KINDS.items() if option in known.reads)
            raise InputError(
                f"{FLAGS.get(option, f'--{option}')} means nothing to {name}; leave it out (read by: {readers})"
            )
