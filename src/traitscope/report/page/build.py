"""From a run directory to its ``report.html``."""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from traitscope.analysis.commitment import LEAST_TOKENS, commitment_point, settling_positions
from traitscope.atomic import write_atomically
from traitscope.captures.opened_writes import OpenedWrites, read_opened_writes
from traitscope.captures.reading import Run, capture_label, open_run
from traitscope.captures.summaries import run_summary
from traitscope.errors import RunError
from traitscope.questions.kinds import KINDS
from traitscope.report.page.answers import kept_answers
from traitscope.report.page.experiments import described_experiments
from traitscope.report.page.night import described_night
from traitscope.report.page.open_layers import described_layers, opened_layers
from traitscope.report.page.packing import WEIGHT_STEP, WRITE_STEP, Z_STEP, Blobs, in_steps
from traitscope.report.page.prompts import PromptData, read_prompts, visible
from traitscope.report.page.selection import Held, Selection, chosen
from traitscope.report.page.trait_cards import described_traits, reader_cosines

_BUDGETS = {"open layers": 4_000_000, "maps": 5_000_000}
"""Bytes that open layers, and layer × token maps with writes, take at most unless everything is asked for."""
_MOST_TEXT = 500
_DRAWS = 200
"""Of a commitment point's interval."""

_SCRIPTS = (
    "plotly-cartesian.min.js",
    "held.js",
    "charts.js",
    "tokens.js",
    "each_prompt.js",
    "compare.js",
    "open_layer.js",
    "cosines.js",
    "sections.js",
)
"""In the order in which the page runs them."""


def report_file(run_dir: Path) -> Path:
    return run_dir / "report.html"


def write_report(run_dir: Path, selection: Selection | None = None, summary: Mapping[str, Any] | None = None) -> Path:
    """Write a run's page, finished or not; an earlier one is replaced.

    Args:
        summary: of ``run_summary``, if it is there already.

    Raises:
        InputError: not a run directory, or a wish that fits no prompt.
        RunError: the page cannot be written.
    """
    page = rendered_page(run_dir, selection or Selection(), summary or run_summary(run_dir))
    path = report_file(run_dir)
    try:
        write_atomically(path, lambda file: file.write(page.encode("utf-8", errors="replace")))
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; what was captured is safe") from None
    return path


def rendered_page(run_dir: Path, selection: Selection, summary: Mapping[str, Any]) -> str:
    """The page as text."""
    run = open_run(run_dir)
    captures = summary["captures"]
    held = chosen(captures, selection)
    blobs = Blobs(dict.fromkeys(_BUDGETS, inf) if selection.everything else dict(_BUDGETS))
    prompts, texts = _prompts(_Source.of(run, run_dir, captures), held, blobs)
    traits = list(run.traits)
    experiments = described_experiments(captures, traits)
    data = {
        "run": shlex.quote(str(run_dir)),
        "traits": [_trait_data(run, name) for name in traits],
        "checkpoints": list(run.checkpoints),
        "steps": {"z": Z_STEP, "write": WRITE_STEP, "weight": WEIGHT_STEP},
        "prompts": prompts,
        "experiments": experiments,
        "table": _table(captures, {prompt["generation"] for prompt in prompts}, traits),
        "cosines": reader_cosines(run_dir, traits),
    }
    return _page(
        night=described_night(run_dir, summary),
        traits=described_traits(run_dir, summary["traits"]),
        answers=kept_answers(run_dir),
        kinds=list(KINDS),
        n_captured=len({capture["generation"] for capture in captures if capture["status"] == "ok"}),
        open_left_out=sum(prompt["open_left_out"] for prompt in prompts),
        left_out=held.left_out,
        without_layers=sum(prompt["layers"] is None for prompt in prompts),
        n_experiments=len(experiments),
        has_open=any(prompt["open"] for prompt in prompts),
        texts=texts,
        data=data,
        blobs=blobs.texts,
    )


def _trait_data(run: Run, name: str) -> dict[str, Any]:
    trait = run.traits[name]
    rows = [trait.checkpoints.index(checkpoint) for checkpoint in run.checkpoints]
    return {
        "name": name,
        "poles": [visible(pole) for pole in trait.poles],
        "readout": run.checkpoints.index(trait.readout),
        "verdict": trait.verdict,
        "mean": [_rounded(value) for value in trait.mean["response_token"][rows]],
        "std": [_rounded(value) for value in trait.std["response_token"][rows]],
    }


def _rounded(value: float) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None


@dataclass(frozen=True)
class _Source:
    """Where the data of prompts comes from; captures by generation, ``spread`` ``[n_traits]`` at the readouts."""

    run: Run
    captures: Mapping[str, Sequence[Mapping[str, Any]]]
    opened: Mapping[str, Sequence[int]]
    writes: Mapping[tuple[str, int], OpenedWrites]
    spread: np.ndarray

    @classmethod
    def of(cls, run: Run, run_dir: Path, captures: Sequence[Mapping[str, Any]]) -> _Source:
        by_generation: dict[str, list[Mapping[str, Any]]] = {}
        for capture in captures:
            by_generation.setdefault(capture["generation"], []).append(capture)
        opened = opened_layers(captures)
        spread = [trait.std["response_token"][trait.checkpoints.index(trait.readout)] for trait in run.traits.values()]
        return cls(run, by_generation, opened, read_opened_writes(run_dir) if opened else {}, np.array(spread))


def _prompts(source: _Source, held: Held, blobs: Blobs) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """The data of the held prompts in the suite's order, and their tokens."""
    described = {
        prompt.generation: (
            _prompt(source, prompt, blobs),
            [{**token, "token": visible(token["token"])} for token in prompt.tokens],
        )
        for prompt in read_prompts(source.run, held.generations)
    }
    ordered = [described[generation] for generation in source.captures if generation in described]
    return [data for data, _ in ordered], [tokens for _, tokens in ordered]


def _prompt(source: _Source, prompt: PromptData, blobs: Blobs) -> dict[str, Any]:
    run, generation = source.run, prompt.generation
    own, opened = source.captures[generation], source.opened.get(generation, [])
    readouts = [run.checkpoints.index(trait.readout) for trait in run.traits.values()]
    at_readout = prompt.z[np.arange(len(readouts)), readouts] if readouts else prompt.z[:, 0]
    layers, blocks = f"{generation}-z", f"{generation}-w"
    full = {layers: in_steps(prompt.z, Z_STEP), blocks: in_steps(prompt.writes, WRITE_STEP)}
    has_layers = blobs.add_if_room("maps", full)
    opened_here = described_layers(run, generation, opened, source.writes, source.spread, blobs)
    return {
        "generation": generation,
        "labels": list(dict.fromkeys(_label(capture) for capture in own)),
        "prompt": visible(own[0]["prompt"]),
        "n": len(prompt.tokens),
        "start": prompt.n_prompt,
        "readout": blobs.add(f"{generation}-r", in_steps(at_readout, Z_STEP)),
        "logprob": blobs.add(f"{generation}-l", prompt.logprob),
        "layers": layers if has_layers else None,
        "writes": blocks if has_layers else None,
        "commitments": _commitments(prompt, at_readout, list(run.traits)),
        "open": opened_here,
        "open_left_out": len(opened_here) < len(opened),
    }


def _commitments(prompt: PromptData, at_readout: np.ndarray, traits: Sequence[str]) -> dict[str, list[int | None]]:
    """Positions ``[point, low, high]`` where each trait's trajectory comes to its final level, if it does."""
    places = np.flatnonzero(prompt.content)
    if len(places) < LEAST_TOKENS:
        return {}
    z = at_readout[:, places]
    there = np.flatnonzero(~np.isnan(z).any(axis=1))
    moving = there[settling_positions(z[there].astype(np.float64)) > 0]
    found: dict[str, list[int | None]] = {}
    for number in moving:
        point = commitment_point(z[number], draws=_DRAWS)
        ends = (point.position, point.low, point.high)
        found[traits[number]] = [None if end is None else int(places[end]) for end in ends]
    return found


def _table(captures: Sequence[Mapping[str, Any]], held: set[str], traits: Sequence[str]) -> list[dict[str, Any]]:
    """One row per prompt of an experiment with its mean z; the page lists those that it holds, and failures."""
    rows: dict[str, dict[str, Any]] = {}
    for capture in captures:
        label = _label(capture)
        row = rows.setdefault(
            label,
            {
                "label": label,
                "generation": capture["generation"] if capture["generation"] in held else None,
                "prompt": visible(capture["prompt"][:_MOST_TEXT]),
                "response": visible((capture["response"] or "")[:_MOST_TEXT]),
                "status": capture["status"],
                "z": {},
            },
        )
        row["z"] |= {trait: round(z, 4) for trait in traits if (z := capture["mean_z"].get(trait)) is not None}
    return [row for row in rows.values() if row["generation"] is not None or row["status"] in ("failed", "too_long")]


def _label(capture: Mapping[str, Any]) -> str:
    """What the page calls a capture; samples after the first have their number."""
    sample = f" #{capture['sample']}" if capture["sample"] else ""
    return visible(capture_label(capture) + sample)


def _page(*, data: Mapping[str, Any], blobs: Mapping[str, str], **content: Any) -> str:
    """Fill the template; only the scripts whose hashes stand in the policy may run."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    scripts = [_asset(name) for name in _SCRIPTS]
    return environment.get_template("report.html.j2").render(
        **content,
        policy=_policy(scripts),
        style=Markup(_asset("report.css")),
        scripts=[Markup(script) for script in scripts],
        data=Markup(_harmless_json(data)),
        blobs=blobs,
    )


def _asset(name: str) -> str:
    return (resources.files("traitscope.report.page") / "assets" / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy under which nothing is fetched and no other script runs."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _harmless_json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
