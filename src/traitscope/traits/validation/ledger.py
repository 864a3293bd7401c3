"""How often a sealed test split was looked at with a model: kept in the user's cache, across fits and sessions."""

from __future__ import annotations

import hashlib
import json

from traitscope.cache import read_cached_json, write_cached_json
from traitscope.traits.scenarios import ScenarioSet

_FOLDER = "looks"


def count_look(scenarios: ScenarioSet, fingerprint: str) -> int:
    """Count one more look at the test split with the model of this fingerprint; returns how many there were."""
    texts = json.dumps([pair.model_dump() for pair in scenarios.splits.test], sort_keys=True)
    key = hashlib.sha256(f"{fingerprint}|{texts}".encode()).hexdigest()[:16]
    name = f"{scenarios.name}-{key}"
    looks = int((read_cached_json(_FOLDER, name) or {}).get("looks", 0)) + 1
    write_cached_json(_FOLDER, name, {"looks": looks})
    return looks
