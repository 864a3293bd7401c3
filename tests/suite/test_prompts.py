"""Bugs caught here: a prompt lost or doubled while reading, an error that names no place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from traitscope.errors import InputError
from traitscope.suite.file import Experiment
from traitscope.suite.prompts import Prompt, read_prompts


def _write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_prompt_file(path: Path) -> list[Prompt]:
    return read_prompts(Experiment(name="file", prompts=path.name), path.parent)


def test_all_kinds_of_files_give_the_same_prompts(tmp_path: Path) -> None:
    texts = ["Hello, you", 'Say "hi"', "Ünïcode?"]
    txt = _write(tmp_path, "p.txt", "\n".join(texts) + "\n\n")
    jsonl = _write(
        tmp_path, "p.jsonl", '{"prompt": "Hello, you"}\n{"prompt": "Say \\"hi\\""}\n\n{"prompt": "Ünïcode?", "id": 3}\n'
    )
    csv = _write(tmp_path, "p.csv", 'id,prompt\n1,"Hello, you"\n2,"Say ""hi"""\n3,Ünïcode?\n')
    pq.write_table(pa.table({"prompt": texts}), tmp_path / "p.parquet")
    for path in (txt, jsonl, csv, tmp_path / "p.parquet"):
        prompts = read_prompt_file(path)
        assert [prompt.messages[0]["content"] for prompt in prompts] == texts, path
        assert [prompt.id for prompt in prompts] == ["1", "2", "3"]


def test_messages_and_given_responses(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "p.jsonl",
        '{"id": "a", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n'
        '{"id": "b", "prompt": "q", "response": "r"}\n',
    )
    first, second = read_prompt_file(path)
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert (second.messages[0]["content"], second.response) == ("q", "r")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", b"ok\nbad \xff\n", "line 2: not UTF-8"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2: no JSON"),
        (
            "p.jsonl",
            '{"prompt": "a", "promt": "b"}\n',
            "line 1: unknown field 'promt'; known: id, prompt, messages, response",
        ),
        ("p.jsonl", '{"prompt": "a", "messages": []}\n', "either prompt or messages"),
        ("p.jsonl", '{"messages": [{"role": "robot", "content": "x"}]}\n', "role 'robot' is unknown"),
        ("p.jsonl", '{"prompt": "  "}\n', "line 1: the prompt is empty"),
        ("p.jsonl", '{"prompt": "a", "response": " "}\n', "the response is empty"),
        ("p.jsonl", '{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}\n', "the id 'x' stands twice"),
        ("p.csv", "question\nhello\n", "no column named prompt"),
        ("p.parquet", b"not parquet", "no readable Parquet"),
        ("p.docx", "x", "unknown kind"),
    ],
)
def test_bad_files_name_the_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_prompt_file(_write(tmp_path, name, content))
    assert name in str(error.value)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("p.txt", "p.parquet"):
        with pytest.raises(InputError, match="no such file"):
            read_prompt_file(tmp_path / name)
