"""Reading results back: lazy tables, scores as z, one generation as an xarray."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from traitscope.captures.calibration import TraitCalibration, read_calibration
from traitscope.captures.files import committed_shards, read_frozen_plan, shard_file
from traitscope.captures.internals import OpenLayer, ReadTensor, open_layer, stored_tensors
from traitscope.captures.schema import SHARD_TABLES, shard_schema
from traitscope.checkpoints import Checkpoint, checkpoint_index
from traitscope.errors import InputError, near_names

if TYPE_CHECKING:
    import xarray

Region = Literal["prompt_last", "response_token", "response_mean"]


def open_run(path: str | Path) -> Run:
    """Open a run directory, finished or not; what its committed shards hold is readable.

    Raises:
        InputError: not a run directory.
    """
    run_dir = Path(path)
    plan = read_frozen_plan(run_dir)
    names = [trait["name"] for trait in plan["traits"]]
    traits = {name: read_calibration(run_dir / "vectors" / f"{name}.safetensors") for name in names}
    shards = committed_shards(run_dir)
    frames = {table: _scan(run_dir, shards, table, names) for table in SHARD_TABLES}
    frames["generations"] = frames["generations"].unique("generation", keep="last", maintain_order=True)
    frames["prompts"] = pl.scan_parquet(run_dir / "prompts.parquet")
    frames["captures"] = pl.scan_parquet(run_dir / "captures.parquet")
    return Run(
        frames,
        traits,
        tuple(plan["checkpoints"]),
        title=str(run_dir),
        open_tensors=lambda: stored_tensors(run_dir, shards),
    )


def _scan(run_dir: Path, shards: Sequence[int], table: str, traits: Sequence[str]) -> pl.LazyFrame:
    if not shards:
        return frame_of(shard_schema(table, traits).empty_table())
    return pl.scan_parquet([shard_file(run_dir, shard, table) for shard in shards], glob=False)


def frame_of(table: pa.Table) -> pl.LazyFrame:
    """An Arrow table as a lazy polars frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()


class Run:
    """Captured generations, on disk or in memory.

    Attributes:
        generations: one row per generation: status, error, counts, response, seed, seconds.
        tokens: one row per position: token, phase, role, turn, segment, special, logprob.
        scores: one row per generation and checkpoint, lists over positions: norm and ``score.<trait>``.
        writes: the same up to each trait's readout: ``write.<trait>``.
        prompts, captures: what was asked: experiments, prompt ids, messages, token ids, layers.
        traits: readout and neutral statistics by trait name.
        checkpoints: names in the order of the forward pass.
    """

    def __init__(
        self,
        frames: Mapping[str, pl.LazyFrame],
        traits: Mapping[str, TraitCalibration],
        checkpoints: tuple[str, ...],
        *,
        title: str,
        open_tensors: Callable[[], Mapping[str, ReadTensor]] = dict,
    ) -> None:
        self.generations = frames["generations"]
        self.tokens = frames["tokens"]
        self.scores = frames["scores"]
        self.writes = frames["writes"]
        self.prompts = frames["prompts"]
        self.captures = frames["captures"]
        self.traits = dict(traits)
        self.checkpoints = checkpoints
        self.title = title
        self._open_tensors = cache(open_tensors)  # headers of all shards are read at most once

    def checkpoint(self, layer: int, site: str = "resid_post") -> str:
        """The stored name of a state; ``resid_pre.l`` is stored as ``resid_post.(l-1)``.

        Raises:
            InputError: the model has no such layer or site.
        """
        known = [Checkpoint.from_name(name) for name in self.checkpoints]
        return self.checkpoints[checkpoint_index(known, layer, site)]

    def internals(self, generation: str, layer: int) -> OpenLayer:
        """One layer of a generation, fully open: ``run.internals(generation, 15).pattern``.

        Negative layers count from the end. Each tensor is read when it is asked for.

        Raises:
            InputError: that layer was not opened for that generation.
        """
        n_layers = 1 + max(Checkpoint.from_name(name).layer for name in self.checkpoints)
        absolute = layer + n_layers if layer < 0 else layer
        return open_layer(self._open_tensors(), generation, absolute, self.title)

    def score(
        self,
        trait: str,
        layer: int | Literal["readout"] = "readout",
        site: str = "resid_post",
        *,
        z: bool = True,
        region: Region = "response_token",
    ) -> pl.DataFrame:
        """One trait at one checkpoint for every token of every generation.

        Returns a frame with ``generation``, ``position``, ``token``, ``phase``, ``role``, ``special`` and
        ``z`` (or ``score``). z is centred and scaled by the neutral replies' tokens (``region``), so that
        layers and traits can be compared; it says nothing about single prompt tokens' own neutral spread.

        Raises:
            InputError: unknown trait, layer or site, or one that no generation of this run captured.
        """
        calibration = self._calibration(trait)
        name = calibration.readout if layer == "readout" else self.checkpoint(layer, site)
        value = pl.col(f"score.{trait}")
        scores = (
            self.scores.filter((pl.col("checkpoint") == name) & value.is_not_null())
            .select("generation", value.alias("score"), pl.int_ranges(value.list.len()).alias("position"))
            .explode("score", "position")
            .with_columns(pl.col("position").cast(pl.Int32))
        )
        shown = ("generation", "position", "token", "phase", "role", "special")
        joined = scores.join(
            self.tokens.select(shown), on=["generation", "position"], how="left", maintain_order="left"
        )
        if z:
            row = calibration.checkpoints.index(name)
            mean, std = float(calibration.mean[region][row]), float(calibration.std[region][row])
            joined = joined.with_columns(((pl.col("score") - mean) / std).alias("z"))
        found = joined.select(*shown, "z" if z else "score").collect()
        if found.is_empty():
            self._refuse_uncaptured(trait, name)
        return found

    def to_xarray(self, generation: str) -> xarray.Dataset:
        """Everything about one generation, with dims (position, trait, checkpoint).

        Variables: ``score`` and ``z`` over all three (NaN where a trait's vectors have no direction), ``write``
        likewise (NaN after a trait's readout), ``norm`` over (position, checkpoint). Select a state by name,
        ``.sel(checkpoint="resid_post.14")``, or the same state as the input of the next layer,
        ``.sel(resid_pre="resid_pre.15")``.

        Raises:
            InputError: no such generation with scores in this run.
        """
        import xarray

        scores = self.scores.filter(pl.col("generation") == generation).collect()
        if scores.is_empty():
            raise InputError(f"generation {generation!r} has no scores in {self.title}")
        writes = self.writes.filter(pl.col("generation") == generation).collect()
        tokens = self.tokens.filter(pl.col("generation") == generation).sort("position").collect()
        names = scores["checkpoint"].to_list()
        traits = [trait for trait in self.traits if scores[f"score.{trait}"].null_count() < len(scores)]
        score = np.stack([_stacked(scores[f"score.{trait}"], len(tokens)) for trait in traits])
        z = np.stack(
            [
                np.stack([self.traits[t].z(score[i, c], name) for c, name in enumerate(names)])
                for i, t in enumerate(traits)
            ]
        )
        dims = ("position", "trait", "checkpoint")
        checkpoints = [Checkpoint.from_name(name) for name in names]
        dataset = xarray.Dataset(
            {
                "score": (dims, score.transpose(2, 0, 1)),
                "z": (dims, z.transpose(2, 0, 1)),
                "write": (dims, _writes_at(writes, traits, names, len(tokens)).transpose(2, 0, 1)),
                "norm": (("position", "checkpoint"), np.stack(scores["norm"].to_list()).T),
            },
            coords={
                "position": tokens["position"].to_numpy(),
                "trait": traits,
                "checkpoint": names,
                "layer": ("checkpoint", [checkpoint.layer for checkpoint in checkpoints]),
                "site": ("checkpoint", [checkpoint.site for checkpoint in checkpoints]),
                "resid_pre": ("checkpoint", [_as_resid_pre(name, self.checkpoints) for name in names]),
                **{c: ("position", tokens[c].to_list()) for c in ("token_id", "token", "phase", "special")},
                "logprob": ("position", tokens["logprob"].to_numpy()),
            },
            attrs={"generation": generation},
        )
        return dataset.set_xindex("resid_pre")

    def _refuse_uncaptured(self, trait: str, checkpoint: str) -> None:
        scored = self.scores.filter(pl.col(f"score.{trait}").is_not_null())
        captured = set(scored.select(pl.col("checkpoint").unique()).collect()["checkpoint"])
        if captured and checkpoint not in captured:
            names = [name for name in self.checkpoints if name in captured]
            raise InputError(f"{checkpoint} was not captured for {trait} in this run; captured: {', '.join(names)}")

    def _calibration(self, trait: str) -> TraitCalibration:
        if trait not in self.traits:
            raise InputError(f"trait {trait!r} is not in this run; {near_names(trait, self.traits)}")
        return self.traits[trait]

    def __repr__(self) -> str:
        counts = self.generations.group_by("status").len().sort("status").collect()
        status = ", ".join(f"{row['len']} {row['status']}" for row in counts.to_dicts()) or "nothing yet"
        return (
            f"Run({self.title}: {status}; {len(self.traits)} traits at {len(self.checkpoints)} checkpoints)\n"
            f"  traits: {', '.join(f'{t.trait} (R = {t.readout})' for t in self.traits.values())}\n"
            "  .generations .tokens .scores .writes .prompts .captures\n"
            "  .score(trait)  .to_xarray(generation)  .internals(generation, layer)"
        )


def capture_label(capture: Mapping[str, Any]) -> str:
    """What people call a row of ``captures``: experiment and prompt id, with the dose of a steered experiment."""
    return f"{capture['experiment']}/{capture['prompt_id']}{dose_label(capture)}"


def dose_label(capture: Mapping[str, Any]) -> str:
    """``@+0.3`` for a row of ``captures`` of a steered experiment, else nothing."""
    return "" if capture["alpha"] is None else f"@{capture['alpha']:+g}"


def _as_resid_pre(name: str, checkpoints: Sequence[str]) -> str:
    """The name of a state as the input of a layer, where it is one; else its own name."""
    checkpoint = Checkpoint.from_name(name)
    is_last = name == checkpoints[-1]
    if checkpoint.site != "resid_post" or is_last:
        return name
    return Checkpoint(checkpoint.layer + 1, "resid_pre").name


def _stacked(lists: pl.Series, n_positions: int) -> np.ndarray:
    """``[len(lists), n_positions]``, NaN where there is no list."""
    return np.stack([np.full(n_positions, np.nan) if row is None else row for row in lists.to_list()])


def _writes_at(writes: pl.DataFrame, traits: Sequence[str], names: Sequence[str], n_positions: int) -> np.ndarray:
    """``[n_traits, len(names), n_positions]``, NaN where there is no write."""
    found = np.full((len(traits), len(names), n_positions), np.nan, dtype=np.float32)
    rows: dict[str, Any] = {row["checkpoint"]: row for row in writes.to_dicts()}
    for i, trait in enumerate(traits):
        for c, name in enumerate(names):
            values = rows.get(name, {}).get(f"write.{trait}")
            if values is not None:
                found[i, c] = values
    return found
