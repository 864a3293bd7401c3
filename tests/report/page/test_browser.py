"""The reference night's report, clicked and typed through in a browser: what it shows is what the files hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from playwright.sync_api import Browser, expect

from pages import Opened, chromium
from traitscope.captures.reading import Run, open_run
from traitscope.captures.summaries import run_summary
from traitscope.report.page.build import write_report
from traitscope.traits.vectors import load_vectors

pytestmark = pytest.mark.slow

Z_TOLERANCE = 0.0051
WRITE_TOLERANCE = 0.0011


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(reference_night: Path) -> Path:
    return write_report(reference_night)


@pytest.fixture(scope="module")
def run(reference_night: Path) -> Run:
    return open_run(reference_night)


@pytest.fixture
def opened(browser: Browser, report: Path) -> Iterator[Opened]:
    found = Opened(browser, report)
    yield found
    assert found.said == []
    assert found.fetched() == []
    found.page.context.close()


def _generation(run: Run, label: str) -> str:
    experiment, prompt_id = label.split("/")
    rows = run.captures.filter((pl.col("experiment") == experiment) & (pl.col("prompt_id") == prompt_id)).collect()
    return str(rows["generation"][0])


def _pick(opened: Opened, label: str) -> None:
    opened.page.click(f"#table button.pick:text-is('{label}')")
    opened.page.wait_for_function(
        "label => document.getElementById('prompt-title').textContent.startsWith(label)", arg=label
    )


def _reading(opened: Opened) -> dict[str, str]:
    found: dict[str, str] = opened.page.evaluate("({...document.getElementById('reading').dataset})")
    return found


def test_it_first_says_whether_the_night_worked(opened: Opened, reference_night: Path) -> None:
    summary = run_summary(reference_night)
    text = opened.page.inner_text("#night")
    assert "Everything was captured" in text
    assert f"{summary['counts']['ok']} of {len(summary['captures'])}" in opened.page.inner_text(".tiles")
    assert opened.page.locator("#verdicts .verdict").all_inner_texts() == [
        t["verdict"] for t in summary["traits"].values()
    ]
    assert summary["cost"]["utilisation"]["advice"] in text
    assert f"{summary['old_procedure']['token_forwards']:,}" in text
    assert "2 of 20 generations: all within limits" in text


def test_it_opens_at_its_beginning_and_stays_there(opened: Opened) -> None:
    opened.page.wait_for_selector("#open[data-drawn]")  # by itself, a while after opening
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("scrollY") == 0


def test_every_token_reads_as_it_was_stored(opened: Opened, run: Run) -> None:
    generation = _generation(run, "uncertainty/2")
    stored = run.to_xarray(generation)
    _pick(opened, "uncertainty/2")
    opened.page.select_option("#trait", label="commitment_strength")
    readout = run.traits["commitment_strength"].readout
    tokens = opened.page.locator("#tokens > span")
    assert tokens.count() == stored.sizes["position"]
    tokens.nth(45).click()
    reading = _reading(opened)
    assert (reading["position"], reading["checkpoint"], reading["trait"]) == ("45", readout, "commitment_strength")
    assert float(reading["z"]) == pytest.approx(
        float(stored.z.sel(trait="commitment_strength", checkpoint=readout)[45]), abs=Z_TOLERANCE
    )
    assert float(reading["logprob"]) == pytest.approx(float(stored.logprob[45]), abs=1e-6)


def test_arrow_keys_move_along_tokens_and_layers(opened: Opened, run: Run) -> None:
    stored = run.to_xarray(_generation(run, "uncertainty/1"))
    opened.page.locator("#tokens > span").nth(38).click()
    opened.page.focus("#tokens")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowUp", "ArrowUp"):
        opened.page.keyboard.press(key)
    above = list(run.checkpoints)[run.checkpoints.index(run.traits["uncertainty_calibration"].readout) + 3]
    reading = _reading(opened)
    assert (reading["position"], reading["checkpoint"]) == ("39", above)
    expected = float(stored.z.sel(trait="uncertainty_calibration", checkpoint=above)[39])
    assert float(reading["z"]) == pytest.approx(expected, abs=Z_TOLERANCE)
    opened.page.keyboard.press("Home")
    assert _reading(opened)["position"] == "0"


def test_the_heatmap_holds_every_layer_at_every_token(opened: Opened, run: Run) -> None:
    stored = run.to_xarray(_generation(run, "cognitive/1")).z.sel(trait="sycophancy").values
    _pick(opened, "cognitive/1")
    opened.page.select_option("#trait", label="sycophancy")
    shown = np.array(opened.chart("heatmap")["z"], dtype=float)
    assert shown.shape == stored.T.shape
    assert np.abs(shown[:, 1:] - stored.T[:, 1:]).max() <= Z_TOLERANCE
    assert np.isnan(shown[:, 0]).all()


def test_typing_finds_prompts(opened: Opened) -> None:
    opened.page.fill("#find", "photosynthesis one")
    visible = opened.page.locator("#table tbody tr:visible button.pick").all_inner_texts()
    assert visible == ["cognitive/1", "cognitive-open/1"]
    opened.page.click("#table tbody tr:visible >> nth=0")
    expect(opened.page.locator("#prompt-title")).to_contain_text("photosynthesis in one sentence")


def test_two_prompts_are_compared_on_one_scale(opened: Opened, run: Run) -> None:
    opened.show("compare")
    opened.page.select_option("#left", label="uncertainty/1: What is the capital of France?")
    opened.page.select_option("#right", label="uncertainty/2: What will the weather be like next week?")
    expect(opened.page.locator("#right-tokens")).to_contain_text("weather forecast")
    expect(opened.page.locator("#pair-lines")).to_contain_text("uncertainty/2")
    maps = [opened.chart(name) for name in ("left-map", "right-map")]
    assert maps[0]["zmax"] == maps[1]["zmax"] == -maps[0]["zmin"]
    stored = run.to_xarray(_generation(run, "uncertainty/2"))
    expected = stored.z.sel(trait="uncertainty_calibration").values.T
    assert np.abs(np.array(maps[1]["z"], dtype=float)[:, 1:] - expected[:, 1:]).max() <= Z_TOLERANCE


def test_experiments_are_distributions_over_prompts(opened: Opened, reference_night: Path) -> None:
    opened.show("compare")
    captures = run_summary(reference_night)["captures"]
    expected = [c["mean_z"]["uncertainty_calibration"] for c in captures if c["experiment"] == "uncertainty"]
    dots = opened.chart("experiments")
    shown = [x for x, y in zip(dots["x"], dots["y"], strict=True) if y == 0]
    assert shown == pytest.approx(expected, abs=1e-3)


def test_the_open_layer_shows_what_heads_read_and_who_wrote(opened: Opened, run: Run) -> None:
    opened.show("open")
    label = "uncertainty/2: What will the weather be like next week?"
    opened.page.select_option("#open-prompt", label=label)
    expect(opened.page.locator("#open-tokens")).to_contain_text("weather forecast")
    opened.page.locator("#heads button").nth(3).click()
    generation = _generation(run, "uncertainty/2")
    layer = int(opened.page.input_value("#open-layer"))
    pattern = run.internals(generation, layer).pattern
    shown = np.array(opened.chart("pattern")["z"], dtype=float)
    lower = np.tril_indices(len(shown))
    assert np.abs(shown[lower] - pattern[3][lower]).max() <= 1 / 20000
    position = 50
    opened.page.locator("#open-tokens > span").nth(position).click()
    sums = np.array(opened.page.evaluate("JSON.parse(document.getElementById('head-writes').dataset.sums)"))
    trait = run.traits["uncertainty_calibration"]
    spread = float(trait.std["response_token"][trait.checkpoints.index(trait.readout)])
    writes = run.to_xarray(generation).write.sel(trait="uncertainty_calibration")
    stored = float(writes.sel(checkpoint=f"resid_mid.{layer}")[position]) / spread
    assert sums.sum() == pytest.approx(stored, abs=0.03)  # a step of every head and source; this model has no bias
    bars = opened.chart("blocks")
    assert len(bars["y"]) == run.checkpoints.index(trait.readout)
    assert bars["y"][-1] == pytest.approx(
        float(writes.sel(checkpoint=trait.readout)[position]) / spread, abs=WRITE_TOLERANCE
    )
    strongest = opened.page.locator("#neurons tbody tr").first.locator("td").all_inner_texts()
    activations = run.internals(generation, layer).neurons[position]
    assert float(strongest[1].replace("−", "-")) == pytest.approx(float(activations[int(strongest[0])]), abs=0.006)


def test_traits_have_cards_and_cosines(opened: Opened, run: Run, reference_night: Path) -> None:
    opened.show("traits")
    assert opened.page.locator(".card").count() == len(run.traits)
    vectors = [load_vectors(reference_night / "vectors" / f"{name}.safetensors") for name in run.traits]
    shown = np.array(opened.chart("cosines")["z"])
    row = vectors[0].readout
    assert shown[0, 1] == pytest.approx(float(vectors[0].reader[row] @ vectors[1].reader[row]), abs=1e-4)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge_of_a_phone(browser: Browser, report: Path, scheme: str) -> None:
    opened = Opened(browser, report, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    for section in ("compare", "open", "traits"):
        opened.show(section)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.said == []


def test_paper_is_light_whatever_the_screen_is(browser: Browser, report: Path) -> None:
    opened = Opened(browser, report, color_scheme="dark")
    ink = "document.getElementById('heatmap').layout.font.color"
    on_screen = opened.page.evaluate(ink)
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert (on_screen, opened.page.evaluate(ink)) == ("#e6e9ee", "#1b1f27")
    opened.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert opened.page.evaluate(ink) == on_screen
