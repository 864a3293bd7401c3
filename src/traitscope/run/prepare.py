"""Everything that can be read and refused before a model is loaded."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from traitscope.errors import InputError
from traitscope.model.facts import ModelFacts, facts_of_config
from traitscope.model.fingerprint import fingerprint_of_source
from traitscope.model.loading import choose_device, choose_dtype
from traitscope.model.quantisation import refuse_quantisation
from traitscope.model.source import (
    ModelSource,
    check_reachable,
    context_length,
    find_source,
    load_config,
    load_tokenizer,
)
from traitscope.run.devices import choose_devices
from traitscope.suite.file import LoadedSuite
from traitscope.suite.plan import Plan, make_plan
from traitscope.traits.store import TraitReference, find_trait, refuse_foreign

log = logging.getLogger(__name__)

_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "sshfs", "fuse.sshfs", "lustre", "beegfs", "ceph"}


@dataclass(frozen=True)
class Prepared:
    """A suite that was read, checked and rendered, and what it will run on."""

    loaded: LoadedSuite
    source: ModelSource
    devices: tuple[torch.device, ...]
    dtype: torch.dtype | None
    references: tuple[TraitReference, ...]
    tokenizer: Any
    config: Any
    plan: Plan

    @property
    def device(self) -> torch.device:
        """Where the run is prepared: the first device."""
        return self.devices[0]

    def facts(self) -> ModelFacts:
        return facts_of_config(self.config, self.source.quantization)

    @property
    def known_dtype(self) -> torch.dtype:
        """The dtype to plan with; the checkpoint's own is taken from its configuration."""
        return self.dtype or getattr(self.config, "dtype", None) or torch.float32


def prepare(
    loaded: LoadedSuite,
    *,
    device: str = "auto",
    devices: str | None = None,
    dtype: str = "auto",
    quantize: str | None = None,
    allow_foreign: bool = False,
    trust_remote_code: bool = False,
) -> Prepared:
    """Read and check all that a suite names: device, traits, model, prompts; render every prompt.

    Args:
        devices: instead of ``device``, one for each worker process, separated by commas.

    Raises:
        InputError: whatever can be known to be wrong without the model's weights.
    """
    chosen_devices = choose_devices(devices) if devices is not None else (choose_device(device),)
    chosen_dtype = choose_dtype(dtype, chosen_devices[0])
    by_reference = _find_traits(loaded)
    suite = loaded.suite
    source = find_source(
        suite.model, revision=suite.revision, trust_remote_code=trust_remote_code, quantization=quantize
    )
    check_reachable(source)
    refuse_quantisation(source, chosen_devices[0])
    config = load_config(source)
    tokenizer = load_tokenizer(source)
    text_config = config.get_text_config()
    plan = make_plan(
        loaded,
        tokenizer,
        trait_name=lambda reference: by_reference[reference].name,
        n_layers=int(text_config.num_hidden_layers),
        context_length=context_length(config),
    )
    references = tuple({r.name: r for r in by_reference.values() if r.name in plan.traits}.values())
    if not allow_foreign:
        _refuse_foreign_vectors(references, source, tokenizer)
    return Prepared(loaded, source, chosen_devices, chosen_dtype, references, tokenizer, config, plan)


def _find_traits(loaded: LoadedSuite) -> dict[str, TraitReference]:
    given = dict.fromkeys(
        reference for experiment in loaded.suite.experiments for reference in loaded.shared(experiment, "traits")
    )
    try:
        found = {reference: find_trait(reference, loaded.folder) for reference in given}
    except InputError as error:
        raise InputError(f"{loaded.label}: traits: {error}") from None
    files: dict[str, Path] = {}
    for reference in found.values():
        other = files.setdefault(reference.name, reference.path)
        if other != reference.path:
            raise InputError(f"traits: {other} and {reference.path} are both named {reference.name!r}; rename one")
    return found


def _refuse_foreign_vectors(references: Sequence[TraitReference], source: ModelSource, tokenizer: Any) -> None:
    files = [reference for reference in references if reference.kind == "vectors"]
    fingerprint = fingerprint_of_source(source, tokenizer) if files else None
    if fingerprint is not None:
        for reference in files:
            refuse_foreign(reference, fingerprint.short)


def check_writable(out: Path) -> None:
    """Refuse an output directory that cannot be written, before anything expensive begins.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}") from None
    if (kind := _file_system(out)) in _NETWORK_FILE_SYSTEMS:
        log.warning("%s is on a network disk (%s), where locks and renames may not hold; use a local one", out, kind)


def _file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, as far as it can be told."""
    resolved = path.resolve()
    mounts = {Path(mount.mountpoint): mount.fstype for mount in psutil.disk_partitions(all=True)}
    return next((mounts[folder] for folder in (resolved, *resolved.parents) if folder in mounts), "")
