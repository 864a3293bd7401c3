"""Trait scores for every token at every layer, in one pass over a suite of prompts."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from traitscope.attribution.attribute import attribute
    from traitscope.attribution.closure import check_closure
    from traitscope.attribution.explanation import explain
    from traitscope.captures.reading import Run, open_run
    from traitscope.captures.responses import mean_z
    from traitscope.errors import InputError, RunError, TraitscopeError
    from traitscope.model.loading import LanguageModel, load_model
    from traitscope.run.notebook import capture
    from traitscope.suite.file import load_suite
    from traitscope.traits.vectors import TraitVectors, load_vectors, save_vectors

__version__ = "0.1.0"

_HOMES = {
    "Run": "traitscope.captures.reading",
    "open_run": "traitscope.captures.reading",
    "mean_z": "traitscope.captures.responses",
    "InputError": "traitscope.errors",
    "RunError": "traitscope.errors",
    "TraitscopeError": "traitscope.errors",
    "attribute": "traitscope.attribution.attribute",
    "check_closure": "traitscope.attribution.closure",
    "explain": "traitscope.attribution.explanation",
    "LanguageModel": "traitscope.model.loading",
    "load_model": "traitscope.model.loading",
    "capture": "traitscope.run.notebook",
    "load_suite": "traitscope.suite.file",
    "TraitVectors": "traitscope.traits.vectors",
    "load_vectors": "traitscope.traits.vectors",
    "save_vectors": "traitscope.traits.vectors",
}

__all__ = [
    "InputError",
    "LanguageModel",
    "Run",
    "RunError",
    "TraitVectors",
    "TraitscopeError",
    "__version__",
    "attribute",
    "capture",
    "check_closure",
    "explain",
    "load_model",
    "load_suite",
    "load_vectors",
    "mean_z",
    "open_run",
    "save_vectors",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line answers before torch is loaded.
    if name not in _HOMES:
        raise AttributeError(f"module 'traitscope' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
