"""Bugs caught here: gigabytes taken for gibibytes, a cache that counts query heads, a model that needs its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from traitscope.errors import InputError
from traitscope.run.sizing import describe_sizes, memory_bytes

LLAMA_3_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def test_llama_3_8b_from_its_configuration_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    described = describe_sizes(str(tmp_path / "config.json"), "24GB", "auto")
    assert described["parameters"] == 8_030_261_248  # as its model card counts it
    assert described["weight_bytes"] == 2 * 8_030_261_248
    assert described["cache_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    batches = [row["largest_batch"] for row in described["rows"]]
    assert batches == sorted(batches, reverse=True)
    assert describe_sizes(str(tmp_path), "16GB", "auto")["rows"][0]["largest_batch"] == 0
    assert describe_sizes(str(tmp_path), "64GB", "float32")["weight_bytes"] == 4 * 8_030_261_248


@pytest.mark.parametrize(("text", "expected"), [("24GB", 24e9), ("16GiB", 2**34), ("1.5 gb", 1.5e9), ("512M", 512e6)])
def test_sizes_as_people_write_them(text: str, expected: float) -> None:
    assert memory_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "0GB", "-3GB", "3 PB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="use a size such as 24GB"):
        memory_bytes(text)


@pytest.mark.parametrize(
    ("content", "message"), [("{", "no configuration"), ('{"model_type": "lama"}', "no configuration")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        describe_sizes(str(tmp_path / "config.json"), "24GB", "auto")
    assert "\n" not in str(error.value)
