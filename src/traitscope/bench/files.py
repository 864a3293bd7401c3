"""What a bench leaves in its directory: all figures and raw times as JSON, and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from traitscope.atomic import write_atomically
from traitscope.bench.picture import save_picture


def save_bench(result: Mapping[str, Any], out: Path) -> tuple[Path, Path]:
    """Write ``bench-<date>.json`` and ``.png`` under one name that is not taken; returns both paths."""
    stamp = datetime.fromisoformat(result["date"]).strftime("%Y%m%d-%H%M%S")
    names = (f"bench-{stamp}{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100))))
    stem = next(name for name in names if not (out / f"{name}.json").exists())
    figures, picture = out / f"{stem}.json", out / f"{stem}.png"
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(figures, lambda file: file.write(text.encode()))
    save_picture(result, picture)
    return figures, picture
