"""The user's cache directory: things that can be made again, shared by all runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Where converted models, fitted vectors and file hashes are kept.

    The environment variable ``TRAITSCOPE_CACHE`` moves it.
    """
    moved = os.environ.get("TRAITSCOPE_CACHE")
    if moved:
        return Path(moved).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("traitscope")
