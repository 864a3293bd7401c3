"""The most memory that this process had resident."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_HIGH_WATER = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


def peak_resident_bytes() -> int:
    """The high-water mark of this program's resident memory, in bytes.

    On Linux it is read from ``/proc``: ``ru_maxrss`` carries over the mark of a larger process that started this one.
    """
    try:
        found = _HIGH_WATER.search(Path("/proc/self/status").read_text())
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else _peak_elsewhere()


def _peak_elsewhere() -> int:
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
