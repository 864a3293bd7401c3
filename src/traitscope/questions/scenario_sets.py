"""The scenario sets behind a run's vectors, for questions that replay their dev pairs. The sealed test split stays
sealed: nothing here reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from traitscope.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traitscope.model.loading import LanguageModel
    from traitscope.suite.rendering import PromptStyle
    from traitscope.traits.scenarios import ScenarioSet
    from traitscope.traits.vectors import TraitVectors


@dataclass(frozen=True)
class Sourced:
    """A run's vectors of one trait and the scenario set that they were fitted on."""

    vectors: TraitVectors
    scenarios: ScenarioSet

    @property
    def style(self) -> PromptStyle:
        """How the set's prompts were rendered when the vectors were fitted."""
        from traitscope.suite.file import BASE_TEMPLATE
        from traitscope.suite.rendering import PromptStyle

        return PromptStyle(None, {}, self.vectors.origin.base_template or BASE_TEMPLATE)


def sourced(vectors: TraitVectors) -> Sourced:
    """Vectors with their scenario set.

    Raises:
        InputError: the library has no set of that name, or has changed it since the vectors were fitted.
    """
    from traitscope.traits.scenarios import library_names, library_scenarios

    if vectors.trait not in library_names():
        raise InputError(
            f"trait {vectors.trait}: its scenario set is not in the library, so there are no pairs to replay"
        )
    scenarios = library_scenarios(vectors.trait)
    if scenarios.digest() != vectors.origin.scenarios:
        raise InputError(
            f"trait {vectors.trait}: the vectors of this run were not fitted on the library's scenario set as it is "
            "now, so its dev pairs may not be new to them; run the suite again"
        )
    return Sourced(vectors, scenarios)


def those_with_sets(
    chosen: Sequence[TraitVectors], *, named: bool, check: Callable[[Sourced], None] = lambda _sourced: None
) -> tuple[list[Sourced], list[str]]:
    """The vectors whose scenario set is at hand, and a sentence on each of the others.

    ``check`` raises InputError for further reasons to leave a trait out.

    Raises:
        InputError: of a trait that was ``named``, or none is left.
    """
    found: list[Sourced] = []
    reasons: list[str] = []
    for vectors in chosen:
        try:
            one = sourced(vectors)
            check(one)
            found.append(one)
        except InputError as error:
            if named:
                raise
            reasons.append(str(error))
    if not found:
        raise InputError("; ".join(reasons))
    return found, [f"Left out: {reason}." for reason in reasons]


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show progress over ``total`` texts; gives what to call after each."""
    from traitscope.run.progress import default_reporter, stage
    from traitscope.traits.counting import Counter

    with default_reporter() as reporter:
        yield Counter(stage(reporter, "texts"), what, total)


def run_model(run_dir: Path) -> LanguageModel:
    """The model that the run was made with."""
    from traitscope.run.reload import model_of_run

    return model_of_run(run_dir)
