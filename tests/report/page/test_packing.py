from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from traitscope.report.page.packing import Blobs, from_steps, in_steps, packed, unpacked

_VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(float("nan"))), min_size=1, max_size=40)


@given(_VALUES, st.sampled_from([0.01, 0.002, 1 / 20000]))
def test_values_come_back_within_half_a_step_or_clipped_or_missing(values: list[float], step: float) -> None:
    given_values = np.array(values)
    back = from_steps(unpacked(packed(in_steps(given_values, step)), "i2"), step)
    largest = 32767 * step
    assert (np.isnan(back) == np.isnan(given_values)).all()
    there = ~np.isnan(given_values)
    assert np.abs(back[there] - np.clip(given_values[there], -largest, largest)).max(initial=0) <= step * 0.5001


def test_what_is_optional_stays_within_its_budget_and_comes_whole() -> None:
    noise = np.random.default_rng(0).integers(-30000, 30000, 3000).astype(np.int16)
    blobs = Blobs({"maps": 20_000, "open layers": 10_000})
    assert blobs.add_if_room("maps", {"a": noise, "b": noise})
    assert not blobs.add_if_room("maps", {"c": noise, "d": noise})
    assert blobs.add_if_room("open layers", {"e": noise})
    blobs.add("needed", noise)
    assert set(blobs.texts) == {"a", "b", "e", "needed"}
