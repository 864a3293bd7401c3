"""Putting files on disk so that a kill at any moment leaves either all of a shard or none of it."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from traitscope.atomic import is_dead_temporary, write_atomically
from traitscope.captures.files import committed_shards, done_file, internals_file, shard_file
from traitscope.captures.integrity import sha256_of
from traitscope.errors import RunError


def commit_shard(
    run_dir: Path, shard: int, tables: Mapping[str, pa.Table], internals: Mapping[str, torch.Tensor]
) -> None:
    """Write a shard's tables and its open layers' tensors, then the ``.done.json`` that makes them count.

    Raises:
        RunError: the disk is full or cannot be written; nothing that was committed is touched.
    """
    files = {}
    for name, table in tables.items():
        path = shard_file(run_dir, shard, name)
        write_table(path, table)
        files[path.name] = {**_fingerprint(path), "rows": table.num_rows}
    if internals:
        path = internals_file(run_dir, shard)
        write_tensors(path, internals)
        files[path.name] = {**_fingerprint(path), "tensors": len(internals)}
    write_json(done_file(run_dir, shard), {"shard": shard, "files": files})


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write one safetensors file under a temporary name, then rename."""
    content = save(dict(tensors))
    _write(path, lambda file: file.write(content))


def write_table(path: Path, table: pa.Table) -> None:
    """Write one Parquet file (zstd; lists of float32 byte-stream-split) under a temporary name, then rename."""
    floats = [
        f"{field.name}.list.element"
        for field in table.schema
        if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type)
    ]
    plain = [name for name in table.schema.names if f"{name}.list.element" not in floats]
    _write(
        path,
        lambda file: pq.write_table(
            table,
            file,
            compression="zstd",
            use_dictionary=plain,
            column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        ),
    )


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file under a temporary name, then rename."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then rename."""
    _write(path, lambda file: file.write(text.encode()))


def _write(path: Path, fill: Callable[[IO[bytes]], Any]) -> None:
    with disk_errors(path):
        write_atomically(path, fill)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says of a full or broken disk into one line."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"the disk is full: {path.name} could not be written in {path.parent}") from error
        raise RunError(f"{path} could not be written: {error.strerror or error}") from error


def remove_leftovers(run_dir: Path, shards: Collection[int] | None = None) -> list[Path]:
    """Remove temporary files of this host's processes that live no more, and shard files without a commit.

    Call it only under the run's lock; while other workers write, only for the ``shards`` of one that is gone.
    """
    committed = set(committed_shards(run_dir))
    leftovers = [path for path in _files_below(run_dir) if is_dead_temporary(path)]
    for pattern in ("*.parquet", "*.safetensors"):
        for path in (run_dir / "shards").glob(pattern):
            shard = int(path.name.split(".", 1)[0])
            if shard not in committed and (shards is None or shard in shards):
                leftovers.append(path)
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def _files_below(run_dir: Path) -> Iterator[Path]:
    for folder in (run_dir, run_dir / "shards", run_dir / "vectors"):
        yield from folder.glob(".*.tmp")
