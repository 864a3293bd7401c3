"""Questions that a suite was made for, so that its report answers them unasked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traitscope.questions.confound import behaviours_with_all_arms

_LEAST_DOSES = 3


def kinds_of_suite(suite: Mapping[str, Any]) -> list[str]:
    """Names in ``kinds.KINDS``: the confound where an experiment has all three arms, doses where several steer."""
    kinds = []
    if behaviours_with_all_arms(experiment["name"] for experiment in suite["experiments"]):
        kinds.append("instruction-confound")
    steers = (experiment.get("steer") for experiment in suite["experiments"])
    if any(steer is not None and len(steer["alpha"]) >= _LEAST_DOSES for steer in steers):
        kinds.append("dose-response")
    return kinds
