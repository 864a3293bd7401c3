"""Prompt sets: where an experiment's prompts come from."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traitscope.errors import InputError
from traitscope.suite.file import Experiment, PromptItem, checked
from traitscope.yaml_file import read_text

_ROLES = ("system", "user", "assistant", "tool")
Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """One prompt: its messages, and the response when one is given instead of generated."""

    id: str
    messages: tuple[Message, ...]
    response: str | None = None


def read_prompts(experiment: Experiment, folder: Path) -> list[Prompt]:
    """The prompts of an experiment, from its list or its .txt, .jsonl, .csv or .parquet file.

    Raises:
        InputError: missing or empty file, unknown kind, empty prompt, duplicate id; names file and line.
    """
    if isinstance(experiment.prompts, str):
        path = (folder / Path(experiment.prompts).expanduser()).resolve()
        where, numbered = f"prompt file {path}", _items_of_file(path)
    else:
        where = "prompts"
        numbered = ((f"item {n}", _item(entry)) for n, entry in enumerate(experiment.prompts, start=1))
    prompts = [_prompt(item, str(n), f"{where}, {place}") for n, (place, item) in enumerate(numbered, start=1)]
    if not prompts:
        raise InputError(f"{where}: holds no prompt; write one prompt a line")
    _refuse_duplicate_ids(prompts, where)
    return prompts


def _item(entry: str | PromptItem) -> PromptItem:
    return entry if isinstance(entry, PromptItem) else PromptItem(prompt=entry)


def _items_of_file(path: Path) -> Iterator[tuple[str, PromptItem]]:
    readers = {".txt": _txt_items, ".jsonl": _jsonl_items, ".csv": _csv_items, ".parquet": _parquet_items}
    if path.suffix not in readers:
        raise InputError(f"prompt file {path}: unknown kind; use {', '.join(readers)}")
    return readers[path.suffix](path)


def _txt_items(path: Path) -> Iterator[tuple[str, PromptItem]]:
    for number, line in enumerate(read_text(path, "prompt file").split("\n"), start=1):
        if line.strip():
            yield f"line {number}", PromptItem(prompt=line.strip())


def _jsonl_items(path: Path) -> Iterator[tuple[str, PromptItem]]:
    for number, line in enumerate(read_text(path, "prompt file").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"prompt file {path}, line {number}: no JSON: {error}") from None
        yield f"line {number}", _checked_item(row, f"prompt file {path}, line {number}")


def _csv_items(path: Path) -> Iterator[tuple[str, PromptItem]]:
    rows = csv.DictReader(io.StringIO(read_text(path, "prompt file"), newline=""))
    _refuse_without_prompt_column(rows.fieldnames or [], path)
    for row in rows:
        where = f"line {rows.line_num}"
        yield where, _checked_item(_known_columns(row), f"prompt file {path}, {where}")


def _parquet_items(path: Path) -> Iterator[tuple[str, PromptItem]]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise InputError(f"prompt file {path}: no such file")
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"prompt file {path}: no readable Parquet: {error}") from None
    _refuse_without_prompt_column(table.column_names, path)
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", _checked_item(_known_columns(row), f"prompt file {path}, row {number}")


def _known_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in PromptItem.model_fields and value not in (None, "")}


def _refuse_without_prompt_column(columns: Any, path: Path) -> None:
    if not {"prompt", "messages"} & set(columns):
        raise InputError(f"prompt file {path}: has no column named prompt; columns: {', '.join(columns)}")


def _checked_item(row: Any, where: str) -> PromptItem:
    if isinstance(row, dict) and isinstance(row.get("id"), int):
        row = {**row, "id": str(row["id"])}
    return checked(PromptItem, row, where)


def _prompt(item: PromptItem, default_id: str, where: str) -> Prompt:
    messages = item.messages if item.messages is not None else [{"role": "user", "content": item.prompt or ""}]
    if not messages:
        raise InputError(f"{where}: messages is empty")
    for message in messages:
        if set(message) != {"role", "content"}:
            raise InputError(f"{where}: a message needs role and content, and nothing else")
        if message["role"] not in _ROLES:
            raise InputError(f"{where}: role {message['role']!r} is unknown; use {', '.join(_ROLES)}")
    if not messages[-1]["content"].strip():
        raise InputError(f"{where}: the prompt is empty")
    if item.response is not None and not item.response.strip():
        raise InputError(f"{where}: the response is empty; leave it out to generate one")
    return Prompt(item.id or default_id, tuple(messages), item.response)


def _refuse_duplicate_ids(prompts: list[Prompt], where: str) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise InputError(f"{where}: the id {prompt.id!r} stands twice; ids must differ")
        seen.add(prompt.id)
