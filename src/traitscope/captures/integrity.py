"""Whether a run's files are still those that were committed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from traitscope.captures.files import committed_shards, done_file, read_done
from traitscope.errors import RunError


@dataclass(frozen=True)
class DamagedFile:
    """A committed file that is missing or changed; ``problem`` reads on from the file's name."""

    shard: int
    path: Path
    problem: str

    def __str__(self) -> str:
        done = done_file(self.path.parent.parent, self.shard).name
        return (
            f"shard {self.shard:04d}: {self.path} {self.problem}; restore the file, or delete {done} "
            "to have the shard run again"
        )


def damaged_files(run_dir: Path, *, deep: bool) -> Iterator[DamagedFile]:
    """Files of committed shards whose size (``deep``: or checksum) is not the committed one."""
    for shard in committed_shards(run_dir):
        for name, expected in read_done(run_dir, shard)["files"].items():
            path = run_dir / "shards" / name
            if not path.is_file():
                yield DamagedFile(shard, path, "is missing")
            elif path.stat().st_size != expected["bytes"]:
                yield DamagedFile(shard, path, f"has {path.stat().st_size} bytes instead of {expected['bytes']}")
            elif deep and sha256_of(path) != expected["sha256"]:
                yield DamagedFile(shard, path, "does not have the checksum that it was committed with")


def check_shards(run_dir: Path, *, deep: bool) -> None:
    """Check sizes (``deep``: checksums) of every committed shard's files.

    Raises:
        RunError: a file is missing or changed; names shard, file and fix.
    """
    for damaged in damaged_files(run_dir, deep=deep):
        raise RunError(str(damaged))


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
