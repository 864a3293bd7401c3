"""Write ``docs/suite-reference.md`` and ``docs/suite.schema.json`` from the models of the suite file. A test fails
when they are stale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from traitscope.suite.file import suite_schema

DOCS = Path(__file__).parent.parent / "docs"
PAGE, SCHEMA = "suite-reference.md", "suite.schema.json"

_HEAD = """# The suite file

This page is made from the models that read the file (`python docs_tools/suite_reference.py`), so it lists every field
with its default. [First night](first-night.md) shows a suite at work, [concepts](concepts.md) says what the words mean.

A suite is YAML. Unknown fields are refused by name, and so are wrong values, with file, line and field. Relative paths
start from the folder of the suite file. An experiment may set `generation`, `system`, `template`, `base_template` and
`traits` again; of `generation` only the fields that differ.

```yaml
name: mine
traits: [uncertainty_calibration]
experiments:
  - name: first
    prompts: ["What is the capital of France?", "Is this a good idea?"]
```

## In an editor

`traitscope schema` prints this reference as JSON Schema ([suite.schema.json](suite.schema.json)). Editors with a YAML
language server complete and check suites when the file begins with a line that names it:

```
traitscope schema > suite.schema.json
```

```yaml
# yaml-language-server: $schema=suite.schema.json
```

**Layers** are counted from 0 and written as `all`, `readout` (each trait's own R), a number, a negative number (from
the end), a range such as `4-12`, or a list of these.
"""

_SECTIONS = {
    "Suite": ("suite", "The whole file"),
    "GenerationSettings": ("generation", "`generation`"),
    "Experiment": ("experiment", "`experiments`: each entry"),
    "GenerationOverrides": ("experiment-generation", "`experiments[].generation`"),
    "PromptItem": ("prompt", "`experiments[].prompts`: each entry, or line of a .jsonl file"),
    "Capture": ("capture", "`experiments[].capture`"),
    "ScoresCapture": ("scores", "`experiments[].capture.scores`"),
    "InternalsCapture": ("internals", "`experiments[].capture.internals`"),
    "Steer": ("steer", "`experiments[].steer`"),
}
"""Of each model: its anchor on the page, and its heading."""
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def suite_reference() -> dict[str, str]:
    """The generated files by name."""
    schema = suite_schema()
    models = {**schema["$defs"], "Suite": schema}
    unlisted = {name for name, model in models.items() if "properties" in model} - set(_SECTIONS)
    if unlisted:
        raise RuntimeError(f"docs_tools/suite_reference.py has no section for {', '.join(sorted(unlisted))}")
    sections = ("\n".join(_section(name, models[name])) for name in _SECTIONS)
    return {PAGE: "\n".join([_HEAD, *sections]), SCHEMA: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"}


def _section(name: str, model: dict[str, Any]) -> Iterator[str]:
    anchor, heading = _SECTIONS[name]
    yield f"## {heading} {{#{anchor}}}\n"
    yield model["description"].replace("``", "`") + "\n"
    yield "| field | type | default | |"
    yield "|---|---|---|---|"
    required = model.get("required", [])
    for field in sorted(model["properties"], key=lambda field: field not in required):
        described = model["properties"][field]
        default = "required" if field in required else _default(described)
        yield f"| `{field}` | {_type(described)} | {default} | {described.get('description', '')} |"
    yield ""


def _default(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "its own"
    return f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return _name_of(field["$ref"])
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(choice) for choice in field["anyOf"]))
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object":
        values = field.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) else "mapping"
    limits = ", ".join(f"{sign} {field[key]}" for key, sign in _LIMITS.items() if key in field)
    return f"{kind} {limits}".strip()


def _name_of(reference: str) -> str:
    anchor, _ = _SECTIONS[reference.rsplit("/", 1)[-1]]
    return f"[{anchor}](#{anchor})"


if __name__ == "__main__":
    for file, text in suite_reference().items():
        (DOCS / file).write_text(text, encoding="utf-8")
