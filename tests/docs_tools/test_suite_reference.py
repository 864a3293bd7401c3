"""The page and the schema of the suite file follow the models that read it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from markdown_it import MarkdownIt

from suite_reference import DOCS, SCHEMA, suite_reference
from traitscope.suite.file import (
    BUILT_IN_SUITES,
    Experiment,
    GenerationSettings,
    Steer,
    Suite,
    built_in_suite_folder,
)

_SCHEMA = json.loads((DOCS / SCHEMA).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "text"), suite_reference().items())
def test_files_are_those_that_the_models_give(file: str, text: str) -> None:
    assert (DOCS / file).read_text(encoding="utf-8") == text, "run: python docs_tools/suite_reference.py"


@pytest.mark.parametrize("name", BUILT_IN_SUITES)
def test_an_editor_finds_nothing_wrong_with_built_in_suites(name: str) -> None:
    jsonschema.validate(yaml.safe_load((built_in_suite_folder(name) / "suite.yaml").read_text()), _SCHEMA)


def test_an_editor_takes_every_form_of_a_dose_and_refuses_an_unknown_field() -> None:
    suite = {"name": "s", "experiments": [{"name": "e", "prompts": ["x"], "steer": {"trait": "t", "alpha": 0.3}}]}
    jsonschema.validate(suite, _SCHEMA)
    jsonschema.validate({**suite, "generation": {"seed": 1}}, _SCHEMA)
    with pytest.raises(jsonschema.ValidationError, match="generations"):
        jsonschema.validate({**suite, "generations": {"seed": 1}}, _SCHEMA)


def test_schema_command_prints_what_the_documentation_holds(command: Any) -> None:
    code, out, _ = command("schema")
    assert code == 0
    assert json.loads(out) == _SCHEMA


def _documented_suites() -> list[tuple[str, dict[str, Any]]]:
    """Every YAML block with experiments, by page."""
    found = []
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))):
        for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
            if token.type == "fence" and token.info == "yaml" and "experiments:" in token.content:
                found.append((page.name, yaml.safe_load(token.content)))
    return found


def test_suites_in_the_documentation_are_suites() -> None:
    suites = _documented_suites()
    assert {"README.md", "steering.md", "suite-reference.md"} <= {page for page, _ in suites}
    for _page, suite in suites:
        jsonschema.validate({"name": "fragment", **suite}, _SCHEMA)


def test_the_suite_in_the_readme_shows_every_field() -> None:
    (suite,) = [suite for page, suite in _documented_suites() if page == "README.md"]
    assert set(suite) == set(Suite.model_fields)
    shown = suite["experiments"][0]
    assert set(GenerationSettings.model_fields) == set(suite["generation"])
    assert set(Experiment.model_fields) - set(shown) == {"generation", "system", "template", "base_template", "traits"}
    assert set(Steer.model_fields) == set(shown["steer"])
