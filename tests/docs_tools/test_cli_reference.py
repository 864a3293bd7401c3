"""The page of the command line names every command and option."""

from __future__ import annotations

from pathlib import Path

from cli_reference import write_cli_page


def test_commands_of_both_levels_stand_there_with_their_options(tmp_path: Path) -> None:
    text = write_cli_page(tmp_path).read_text(encoding="utf-8")
    assert "## `traitscope run`" in text
    assert "## `traitscope traits fit`" in text
    assert "| `--resume RUN_DIR` | Go on with this run. |  |" in text
    assert "| `--batch-size auto|N` |" in text
    assert "required" in text.split("## `traitscope verify`")[1].split("##")[0]
