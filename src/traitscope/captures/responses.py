"""One number per response and trait: its mean z."""

from __future__ import annotations

import polars as pl

from traitscope.captures.reading import Region, Run
from traitscope.suite.tokens import content_mask


def mean_z(run: Run, region: Region = "response_token") -> pl.DataFrame:
    """Mean z at each trait's readout over the content tokens of every response.

    Args:
        region: what z is centred and scaled by: single tokens of the model's responses to neutral prompts, or the
            means of those responses (``response_mean``), which spread less.

    Returns one row per generation, with a float64 column per trait: null where it was not asked, the response has
    no content, or neutral replies do not vary.
    """
    found = run.generations.select("generation").collect()
    for trait in run.traits:
        found = found.join(_mean_z_of(run, trait, region), on="generation", how="left", maintain_order="left")
    return found


def _mean_z_of(run: Run, trait: str, region: Region) -> pl.DataFrame:
    scored = run.score(trait, "readout", z=True, region=region)
    content = content_mask(*(scored[name].to_list() for name in ("position", "phase", "role", "special")))
    return (
        scored.filter(pl.Series(content))
        .group_by("generation", maintain_order=True)
        .agg(pl.col("z").cast(pl.Float64).mean().fill_nan(None).alias(trait))
    )
