"""Vector files from directions that were found elsewhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from traitscope.checkpoints import Checkpoint, checkpoint_index
from traitscope.errors import InputError
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, has_chat_template
from traitscope.traits.calibration import calibrate
from traitscope.traits.direction_files import CONVENTIONS, Convention, DirectionFile
from traitscope.traits.fitting import library_versions
from traitscope.traits.scenarios import load_neutral
from traitscope.traits.vectors import TraitVectors, VectorOrigin

_TRAIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True)
class TraitLabels:
    """How an imported trait is called; the poles are named positive first."""

    name: str
    description: str
    poles: tuple[str, str]

    @classmethod
    def of(cls, name: str, description: str | None, positive: str | None, negative: str | None) -> TraitLabels:
        """Labels with what was not given made up from the name.

        Raises:
            InputError: the name cannot be a column's.
        """
        if not _TRAIT_NAME.fullmatch(name):
            raise InputError(f"--trait {name!r}: use letters, digits and underscores, a letter first")
        return cls(name, description or "imported", (positive or name, negative or f"not {name}"))


def convention_of(file: DirectionFile, given: str | None) -> Convention:
    """What the row numbers of a file mean: what was given, or what the file says itself.

    Raises:
        InputError: neither says it, they contradict each other, or the given one is unknown.
    """
    if given is not None and given not in CONVENTIONS:
        raise InputError(f"--convention {given}: use {', '.join(CONVENTIONS)}")
    if given is not None and file.convention not in (None, given):
        raise InputError(f"{file.path}: is of {file.convention} by its own account; leave out --convention {given}")
    convention = file.convention or given
    if convention is None:
        raise InputError(
            f"{file.path}: does not say which state row i belongs to, and a guess can be a layer off; give "
            "--convention resid_post (what leaves layer i), resid_pre (what enters layer i) or hidden_states "
            "(hidden_states[i] of transformers: what enters layer i; the last one comes after the final norm)"
        )
    return cast(Convention, convention)


def import_vectors(
    model: LanguageModel,
    file: DirectionFile,
    convention: Convention,
    labels: TraitLabels,
    *,
    readout: str | None = None,
    base_template: str = BASE_TEMPLATE,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> TraitVectors:
    """Directions of a file as vectors of ``model``, calibrated on its neutral replies; reader and steerer are the same.

    Rows are scaled to unit length. A row of zeros is none.

    Args:
        readout: a layer (its ``resid_post``) or a checkpoint; None takes the covered one nearest to half depth.

    Raises:
        InputError: the file's width or layers are not the model's, or it has no direction at R.
    """
    placed = _Placed.on(model, file, convention)
    at = _readout(model, placed, readout, file.path)
    neutral = load_neutral()
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_progress("calibrating", done, len(neutral.prompts))

    style = PromptStyle(system=None, template={}, base_template=base_template)
    (calibration,) = calibrate(model, ReaderBank((labels.name,), placed.directions[None], (at,)), neutral, style, count)
    return TraitVectors(
        trait=labels.name,
        description=labels.description,
        poles=labels.poles,
        checkpoints=tuple(checkpoint.name for checkpoint in model.anatomy.checkpoints),
        readout=at,
        reader=placed.directions,
        steerer=placed.directions.clone(),
        calibration=calibration,
        origin=VectorOrigin(
            model=model.name,
            fingerprint=model.fingerprint.short,
            scenarios="",
            neutral=neutral.digest(),
            method={
                "reader": "imported",
                "steerer": "imported",
                "file": file.path.name,
                "sha256": file.sha256,
                "convention": convention,
                "norms": placed.norms,
                "dropped": placed.dropped,
            },
            versions=library_versions(),
            dtype=str(model.dtype).removeprefix("torch."),
            base_template=None if has_chat_template(model.tokenizer) else base_template,
        ),
    )


@dataclass(frozen=True)
class _Placed:
    """The rows of a file at the checkpoints of a model.

    Attributes:
        directions: ``[n_checkpoints, d_model]`` float32, unit rows; NaN where there is none.
        norms: of the file's rows, by checkpoint.
        dropped: rows that belong to no checkpoint, with the reason.
    """

    directions: torch.Tensor
    norms: dict[str, float]
    dropped: list[str]

    @classmethod
    def on(cls, model: LanguageModel, file: DirectionFile, convention: Convention) -> _Placed:
        _refuse_misfit(model, file, convention)
        checkpoints = model.anatomy.checkpoints
        placed = cls(torch.full((len(checkpoints), model.anatomy.d_model), torch.nan), {}, [])
        for number, row in file.rows.items():
            norm = float(row.double().norm())
            if norm == 0:
                continue
            if convention == "hidden_states" and number == model.n_layers:
                placed.dropped.append(f"hidden_states[{number}]: comes after the final norm, where no checkpoint is")
                continue
            site = "resid_post" if convention == "resid_post" else "resid_pre"
            index = checkpoint_index(checkpoints, number, site)
            placed.directions[index] = (row.double() / norm).float()
            placed.norms[checkpoints[index].name] = norm
        return placed


def _refuse_misfit(model: LanguageModel, file: DirectionFile, convention: Convention) -> None:
    n_layers, d_model = model.n_layers, model.anatomy.d_model
    most = n_layers + 1 if convention == "hidden_states" else n_layers
    if file.n_rows is not None and file.n_rows not in (n_layers, most):
        hint = "; so many are its hidden_states" if file.n_rows == n_layers + 1 else ""
        raise InputError(
            f"{file.path}: {file.n_rows} rows, but {convention} of {model.name}, with its {n_layers} layers, has "
            f"{most}{hint}"
        )
    for number, row in file.rows.items():
        if not 0 <= number < most:
            raise InputError(f"{file.path}: layer {number}: {convention} of {model.name} has 0 to {most - 1}")
        if len(row) != d_model:
            raise InputError(
                f"{file.path}: row {number} has {len(row)} values, but d_model of {model.name} is {d_model}"
            )


def _readout(model: LanguageModel, placed: _Placed, asked: str | None, path: Path) -> int:
    checkpoints = model.anatomy.checkpoints
    covered = [index for index, checkpoint in enumerate(checkpoints) if checkpoint.name in placed.norms]
    candidates = [index for index in covered if checkpoints[index].site == "resid_post"]
    if not candidates:
        raise InputError(f"{path}: holds no direction of a resid_post, so that no trait can be read out")
    if asked is None:
        return min(candidates, key=lambda index: abs((checkpoints[index].layer + 1) / model.n_layers - 0.5))
    index = _asked_checkpoint(checkpoints, asked)
    if index not in candidates:
        names = ", ".join(checkpoints[index].name for index in candidates)
        raise InputError(f"--readout {asked}: {path} has no direction there; it has {names}")
    return index


def _asked_checkpoint(checkpoints: tuple[Checkpoint, ...], asked: str) -> int:
    site, _, layer = asked.rpartition(".")
    try:
        number = int(layer)
    except ValueError:
        raise InputError(f"--readout {asked}: give a layer, such as 14, or a checkpoint, resid_post.14") from None
    return checkpoint_index(checkpoints, number, site or "resid_post")
