"""Pages of small runs: whole, half-finished, with failures, without open layers, and with text that means harm."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, expect

from nights import run_suite, write_suite
from pages import Opened, chromium
from traitscope.captures.files import done_file, shard_file
from traitscope.captures.reading import open_run
from traitscope.captures.summaries import run_summary
from traitscope.report.page.build import rendered_page, write_report
from traitscope.report.page.prompts import visible
from traitscope.report.page.selection import Selection
from traitscope.traits.vectors import load_vectors, save_vectors

HOSTILE = [
    "<script>document.title='taken'</script>",
    "\"'><img src=x onerror=\"document.title='taken'\">",
    "</template></script><b>bold</b>",
    "<!--",
    "&lt;i&gt;%{x}<br>",
    "\u202eevil\u202c",
    "👩‍🔬🏳️‍🌈",
    "x" * 2000,
    "{{ 7 * 7 }}",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def small_run(tmp_path: Path, tiny_directory: Path, tiny_cache: Path) -> Callable[..., Path]:
    def make(**more: Any) -> Path:
        suite = write_suite(tmp_path / "suite", tiny_directory, n_prompts=12, **more)
        return run_suite(suite, tmp_path / "runs")

    return make


def _data(run_dir: Path, selection: Selection | None = None) -> tuple[str, dict[str, Any]]:
    page = rendered_page(run_dir, selection or Selection(), run_summary(run_dir))
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return page, json.loads(found[1])


def _put_tokens(run_dir: Path, generation: str, texts: Sequence[str]) -> None:
    """Put ``texts`` in the place of the first tokens of a generation's response."""
    for shard in range(len(list((run_dir / "shards").glob("*.done.json")))):
        path = shard_file(run_dir, shard, "tokens")
        table = pq.read_table(path)
        rows = table.to_pylist()
        own = [row for row in rows if row["generation"] == generation and row["phase"] == "response"]
        for row, text in zip(own, texts, strict=False):
            row["token"] = text
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def test_hostile_text_is_text(small_run: Callable[..., Path], browser: Browser) -> None:
    prompt = "</title><script>document.title='taken'</script>"
    run_dir = small_run(experiments=[{"name": "one", "prompts": [prompt], "capture": {"internals": {"layers": [0]}}}])
    generation = open_run(run_dir).generations.collect()["generation"][0]
    _put_tokens(run_dir, generation, HOSTILE)
    opened = Opened(browser, write_report(run_dir))
    opened.show("compare")
    opened.show("open")
    start = open_run(run_dir).generations.collect()["prompt_tokens"][0]
    spans = opened.page.locator("#tokens > span")
    shown = [spans.nth(start + n).evaluate("span => span.textContent") for n in range(len(HOSTILE))]
    assert shown == [visible(text) for text in HOSTILE]
    assert opened.page.locator("#tokens :is(b, img, script, i)").count() == 0
    assert opened.page.locator("main svg a, main img").count() == 0
    assert "⟨U+202E⟩evil" in opened.page.inner_text("#tokens")
    assert prompt in opened.page.inner_text("#prompt-title")
    assert opened.page.title() == "small · traitscope"
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 1440
    assert (opened.said, opened.fetched()) == ([], [])


def test_only_our_two_scripts_may_run_and_nothing_may_be_fetched(
    small_run: Callable[..., Path], browser: Browser
) -> None:
    opened = Opened(browser, write_report(small_run()))
    opened.page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "document.title = 'taken'";
            document.body.append(script);
            document.body.append(Object.assign(new Image(), { src: "https://example.org/x.png" }));
        }"""
    )
    opened.page.wait_for_timeout(200)
    assert opened.page.title() == "small · traitscope"
    assert len([line for line in opened.said if "Content Security Policy" in line]) == 2


def test_a_half_finished_run_says_what_is_missing_and_shows_what_is_there(
    small_run: Callable[..., Path], browser: Browser
) -> None:
    run_dir = small_run()
    done_file(run_dir, 1).unlink()
    opened = Opened(browser, write_report(run_dir))
    missing = run_summary(run_dir)["counts"]["missing"]
    expect(opened.page.locator(".headline.unfinished")).to_contain_text(f"{missing} not made yet")
    assert f"traitscope run --resume {run_dir}" in opened.page.inner_text("#night")
    assert opened.page.locator("#tokens > span").count() > 0
    assert opened.said == []


def test_failures_are_named_with_their_error(small_run: Callable[..., Path], browser: Browser) -> None:
    run_dir = small_run(experiments=[{"name": "some", "prompts": ["sun", "rain", "y " * 400]}])
    path = shard_file(run_dir, 0, "generations")
    table = pq.read_table(path)
    rows = table.to_pylist()
    failed = next(row for row in rows if row["status"] == "ok")
    failed |= {"status": "failed", "error": "ValueError: <b>no</b>"}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    opened = Opened(browser, write_report(run_dir))
    problems = opened.page.locator("#problems tbody tr").all_inner_texts()
    assert len(problems) == 2
    assert any("failed" in line and "ValueError: <b>no</b>" in line for line in problems)
    assert any("too long" in line and "exceed the model's context of 256" in line for line in problems)
    assert opened.page.locator(".headline.problems").count() == 1
    assert "--retry-failed" in opened.page.inner_text("#night")
    assert opened.said == []


def test_a_run_in_which_nothing_was_captured_has_a_page(small_run: Callable[..., Path], browser: Browser) -> None:
    opened = Opened(browser, write_report(small_run(experiments=[{"name": "long", "prompts": ["y " * 400]}])))
    assert "No prompt was captured yet" in opened.page.inner_text("#prompts")
    opened.show("traits")
    assert opened.said == []


def test_a_run_without_open_layers_has_no_such_section(small_run: Callable[..., Path]) -> None:
    page, data = _data(small_run(experiments=[{"name": "plain", "prompts": ["sun", "rain"]}]))
    assert 'id="open"' not in page
    assert all(prompt["open"] == {} for prompt in data["prompts"])


def test_what_is_left_out_is_counted_and_selected_prompts_are_held(small_run: Callable[..., Path]) -> None:
    run_dir = small_run()
    page, data = _data(run_dir, Selection(patterns=("greedy/1", "greedy/2")))
    assert [prompt["labels"][0] for prompt in data["prompts"]] == ["greedy/1", "greedy/2"]
    n_captured = open_run(run_dir).generations.collect().height
    assert f"{n_captured - 2} captured prompts are left out" in page
    assert len(_data(run_dir, Selection(everything=True))[1]["prompts"]) == n_captured


def test_a_steered_experiment_is_shown_by_dose(small_run: Callable[..., Path]) -> None:
    steer = {"trait": "loudness", "alpha": [-0.2, 0, 0.2]}
    _, data = _data(small_run(experiments=[{"name": "pushed", "prompts": ["sun", "rain"], "steer": steer}]))
    assert [group["name"] for group in data["experiments"]] == ["pushed@-0.2", "pushed@+0", "pushed@+0.2"]


def test_the_chart_library_is_the_published_one_unchanged() -> None:
    digest = hashlib.sha256((resources.files("traitscope.report.page") / "assets/plotly-cartesian.min.js").read_bytes())
    assert digest.hexdigest() == "79542150855a52c567260e3137095dbe2b744e6d702a5cabe67da246942fba7a"


def test_an_answer_that_is_none_is_passed_over_and_an_old_one_says_so(small_run: Callable[..., Path]) -> None:
    run_dir = small_run(experiments=[{"name": "plain", "prompts": ["sun", "rain"]}])
    answers = run_dir / "analyses"
    answers.mkdir()
    table = {"title": "A table", "note": "", "columns": ["a"], "rows": [["<i>"]]}
    answer = {"kind": "drift", "title": "Drift", "findings": ["none"], "tables": [table], "captured": 1}
    (answers / "drift.json").write_text(json.dumps(answer))
    (answers / "torn.json").write_text('{"kind": "torn"')
    (answers / "other.json").write_text(json.dumps({**answer, "kind": "other", "tables": [{"title": "no columns"}]}))
    page, _ = _data(run_dir)
    assert re.findall(r'id="answer-([a-z]+)"', page) == ["drift"]
    assert "<td>&lt;i&gt;</td>" in page
    assert "Asked when 1 of the 2 generations were captured" in page


def test_neutral_replies_that_do_not_vary_leave_gaps_not_a_broken_page(small_run: Callable[..., Path]) -> None:
    run_dir = small_run(experiments=[{"name": "plain", "prompts": ["sun", "rain"]}])
    path = run_dir / "vectors" / "loudness.safetensors"
    vectors = load_vectors(path)
    vectors.calibration.std["response_token"][vectors.readout] = float("nan")
    save_vectors(vectors, path)
    _, data = _data(run_dir)
    assert all(row["z"] == {} for row in data["table"])
    assert data["experiments"][0]["points"]["loudness"] == []


def test_samples_of_a_prompt_can_be_told_apart(small_run: Callable[..., Path]) -> None:
    _, data = _data(small_run())
    labels = [prompt["labels"][0] for prompt in data["prompts"]]
    assert len(set(labels)) == len(labels)
    assert "sampled/1 #1" in labels
