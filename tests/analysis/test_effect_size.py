"""Bugs caught here: a sign or a pooled deviation that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from traitscope.analysis.effect_size import auroc, cohens_d


def test_auroc_and_d_by_hand() -> None:
    assert auroc(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 1) / 6)
    assert cohens_d(np.array([1.0, 3.0]), np.array([0.0, 2.0])) == pytest.approx(1 / np.sqrt(2))
