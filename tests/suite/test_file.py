"""Bugs caught here: an error that names no line, a default that overrides what the suite says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from traitscope.errors import InputError
from traitscope.suite.file import Suite, load_suite

GOOD = """\
name: night
traits: [sycophancy]
generation: {max_new_tokens: 8, temperature: 0.5}
system: Be brief.
experiments:
  - name: one
    prompts: [Hello]
    generation: {samples: 3}
  - name: two
    prompts: [Hello]
    system: null
    traits: [cognitive_load]
"""


def _suite(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_experiments_set_fields_again_and_inherit_the_rest(tmp_path: Path) -> None:
    loaded = load_suite(str(_suite(tmp_path, GOOD)))
    one, two = loaded.suite.experiments
    assert loaded.settings(one).model_dump() == {
        "max_new_tokens": 8,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": 0,
        "samples": 3,
        "seed": 0,
    }
    assert loaded.shared(one, "system") == "Be brief."
    assert loaded.shared(two, "system") is None
    assert loaded.shared(two, "traits") == ["cognitive_load"]


def test_the_resolved_suite_means_the_same_when_read_again(tmp_path: Path) -> None:
    resolved = load_suite(str(_suite(tmp_path, GOOD))).resolved()
    again = load_suite(str(_suite(tmp_path, yaml.safe_dump(resolved)))).resolved()
    assert again == resolved


def test_flags_hold_in_every_experiment(tmp_path: Path) -> None:
    text = GOOD.replace("{samples: 3}", "{samples: 3, max_new_tokens: 99}")
    loaded = load_suite(str(_suite(tmp_path, text))).with_overrides(max_new_tokens=5, model="m")
    assert [loaded.settings(e).max_new_tokens for e in loaded.suite.experiments] == [5, 5]
    assert loaded.suite.model == "m"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("system: Be", "steer: {}\nsystem: Be", r"line 4: steer: unknown key here; it belongs under experiments"),
        (
            "name: one",
            "name: one\n    internals: all",
            r"line 7: experiments\.0\.internals: unknown key here; it belongs under experiments\.capture",
        ),
        ("system: Be", "sistem: Be", r"line 4: sistem: unknown key; did you mean .*system"),
        ("samples: 3", "sampels: 3", r"line 8: experiments\.0\.generation\.sampels: unknown key; .*samples"),
        ("max_new_tokens: 8", "max_new_tokens: 0", r"line 3: generation\.max_new_tokens: .*greater than or equal to 1"),
        ("name: two", "name: one", r"two experiments are named 'one'"),
        (
            "prompts: [Hello]\n    system",
            "steer: {alpha: 1}\n    prompts: [Hello]\n    system",
            "steer: trait is missing",
        ),
        ("samples: 3}", "samples: 3, samples: 4}", r"line 8: key 'samples' stands twice"),
        ("[sycophancy]", "[sycophancy", r"line \d+, column \d+: broken YAML"),
        ("name: night", "name: a/b", r"line 1: name: use letters"),
    ],
)
def test_errors_name_line_and_key(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in GOOD
    with pytest.raises(InputError, match=message):
        load_suite(str(_suite(tmp_path, GOOD.replace(before, after, 1))))


@pytest.mark.parametrize("layers", ["'4'", "[]", "some", "[1, x]", "true", "1.5", "null", "{a: 1}"])
def test_layers_of_no_known_form(tmp_path: Path, layers: str) -> None:
    text = GOOD.replace("name: one", f"name: one\n    capture: {{scores: {{layers: {layers}}}}}")
    with pytest.raises(InputError, match=r"line 7: experiments\.0\.capture\.scores\.layers: .*layer"):
        load_suite(str(_suite(tmp_path, text)))


def test_samples_of_a_greedy_suite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"samples 2 with temperature 0 would all be equal"):
        load_suite(str(_suite(tmp_path, GOOD.replace("temperature: 0.5", "samples: 2"))))


def test_not_utf8_and_empty_and_missing(tmp_path: Path) -> None:
    path = _suite(tmp_path, "")
    with pytest.raises(InputError, match="the file is empty"):
        load_suite(str(path))
    path.write_bytes(b"name: ok\nsystem: caf\xe9\n")
    with pytest.raises(InputError, match=r"line 2: not UTF-8"):
        load_suite(str(path))
    with pytest.raises(InputError, match="did you mean overnight"):
        load_suite("overnite")


def test_the_reference_night_is_the_one_that_was_agreed() -> None:
    loaded = load_suite("overnight")
    scored, opened = loaded.suite.experiments[:4], loaded.suite.experiments[4:]
    lines = [(loaded.folder / str(e.prompts)).read_text().splitlines() for e in scored]
    assert [len(prompts) for prompts in lines] == [8, 4, 4, 4]
    assert [(e.traits, len(e.prompts)) for e in opened] == [(["uncertainty_calibration"], 2), (["cognitive_load"], 2)]
    assert all(e.capture.scores is None and e.capture.internals is not None for e in opened)
    assert {p for e in opened for p in e.prompts} <= {p for prompts in lines for p in prompts}
    assert loaded.suite.generation.max_new_tokens == 50
    assert loaded.suite.traits == ["uncertainty_calibration", "commitment_strength", "cognitive_load", "sycophancy"]


def test_every_suite_field_is_documented_where_it_is_not_plain() -> None:
    schema = Suite.model_json_schema()
    generation = schema["$defs"]["GenerationSettings"]["properties"]
    assert all("description" in field for field in generation.values())
