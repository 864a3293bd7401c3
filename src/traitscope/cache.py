"""The user's cache directory: things that can be made again, shared by all runs."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from traitscope.atomic import write_atomically


def cache_directory() -> Path:
    """Where converted models, fitted vectors, measurements and file hashes are kept.

    The environment variable ``TRAITSCOPE_CACHE`` moves it.
    """
    moved = os.environ.get("TRAITSCOPE_CACHE")
    if moved:
        return Path(moved).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("traitscope")


def read_cached_json(folder: str, name: str) -> dict[str, Any] | None:
    """What ``write_cached_json`` kept under that name, or None."""
    try:
        found = json.loads(_json_file(folder, name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_cached_json(folder: str, name: str, value: dict[str, Any]) -> None:
    """Keep a value; a cache that cannot be written only costs time."""
    file = _json_file(folder, name)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda opened: opened.write(json.dumps(value).encode()))


def _json_file(folder: str, name: str) -> Path:
    return cache_directory() / folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.json"
