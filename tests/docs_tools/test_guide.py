"""The code of the Python guide runs from top to bottom, with a tiny model in place of the embedded one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from markdown_it import MarkdownIt

from suite_reference import DOCS
from tiny_models import CONFIGS, tiny_tokenizer

pytestmark = pytest.mark.slow
PAGE = DOCS / "python-guide.md"


@pytest.fixture(scope="module")
def sixteen_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that is deep enough for the layers that the guide names, and takes the library's texts."""
    config = CONFIGS["llama"]()
    config.num_hidden_layers, config.max_position_embeddings = 16, 4096
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    directory = tmp_path_factory.mktemp("models") / "sixteen-layers"
    module.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


def _blocks() -> list[tuple[str, str, int]]:
    """Language, content and first line of each code block of the page."""
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    return [(token.info, token.content, token.map[0] + 1) for token in tokens if token.type == "fence" and token.map]


def test_every_block_of_the_guide_runs(
    sixteen_layers: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for language, content, line in _blocks():
        content = content.replace("smollm2-135m", str(sixteen_layers))
        if language == "python":
            on_its_own_line = "\n" * line + content  # in a traceback
            exec(compile(on_its_own_line, str(PAGE), "exec"), names)
        else:
            program, *arguments = shlex.split(content)
            assert program == "traitscope"
            code, _, err = command(*arguments)
            assert code == 0, err
