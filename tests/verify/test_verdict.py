"""Bugs caught here: a wrong number, row, position, site or token that verify lets pass; a clean run that it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from traitscope.checkpoints import Checkpoint
from traitscope.model.anatomy import Anatomy, Site
from traitscope.model.capture import Trace
from traitscope.model.decode import Decoded
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import TokenChooser
from traitscope.run import engine
from traitscope.verify.comparison import STORED_ROUNDING
from traitscope.verify.limits import read_limits
from traitscope.verify.verdict import Verdict, verify_run

RunTiny = Callable[..., tuple[Path, LanguageModel]]
Fault = Callable[..., list[Decoded]]
DTYPES = ("float32", "bfloat16")
CHANGED, POSITION = 2, 7  # the checkpoint (resid_post.0) and the position that faults are planted at


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt_neox", "olmo2", "granite", "bloom", "opt"])
def test_a_clean_run_passes(run_tiny: RunTiny, architecture: str, dtype: str) -> None:
    verdict = verify_run(*run_tiny(architecture, dtype), deep=True)
    assert verdict.passed, verdict.problems
    assert verdict.verified == verdict.captured == 6
    sites = {(worst.quantity, worst.site) for worst in verdict.worst}
    assert {("score", "resid_pre"), ("norm", "resid_post"), ("write", "resid_post"), ("argmax", "token")} <= sites
    assert (("score", "resid_mid") in sites) == (architecture != "gpt_neox")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 20, "top_p": 0.9}])
def test_a_clean_sampled_run_passes(run_tiny: RunTiny, settings: dict[str, Any], dtype: str) -> None:
    generation = {"temperature": 1.3, "samples": 2, **settings}
    verdict = verify_run(*run_tiny("qwen3", dtype, generation=generation))
    assert verdict.passed, verdict.problems
    assert ("draw", "token") in {(worst.quantity, worst.site) for worst in verdict.worst}


def test_given_responses_and_prompts_that_are_too_long_pass(run_tiny: RunTiny, tmp_path: Path) -> None:
    rows = [{"prompt": "sun?", "response": "it shines"}, {"prompt": "rain?"}, {"prompt": "moss" * 100}]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, rows)))
    verdict = verify_run(*run_tiny(prompts="mixed.jsonl"))
    assert verdict.passed, verdict.problems
    assert verdict.verified == verdict.captured == 2


def one_score_changed(
    decode: Any, model: LanguageModel, prompts: Any, *, quantization: str | None = None, **options: Any
) -> list[Decoded]:
    """Just more than what is certainly seen."""
    rows = decode(model, prompts, **options)
    trace = rows[0].trace
    limits = read_limits(str(model.dtype).removeprefix("torch."), quantization)
    scores = trace.scores.copy()
    norm, score = trace.norms[CHANGED, POSITION], scores[CHANGED, POSITION, 1]
    seen = limits.certainly_seen(model.anatomy.checkpoints[CHANGED].name, model.n_layers)
    scores[CHANGED, POSITION, 1] += 1.01 * (seen * norm + 2.01 * STORED_ROUNDING * abs(score))
    return [replace(rows[0], trace=replace(trace, scores=scores)), *rows[1:]]


def two_rows_swapped(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    rows = decode(model, prompts, **options)
    first, second = [n for n, prompt in enumerate(prompts) if len(prompt) == len(prompts[-2])][:2]
    rows[first], rows[second] = rows[second], rows[first]
    return rows


def a_position_dropped(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    def shifted(values: np.ndarray) -> np.ndarray:
        return np.concatenate([np.delete(values, POSITION, axis=1), values[:, -1:]], axis=1)

    rows = decode(model, prompts, **options)
    trace = rows[0].trace
    dropped = Trace(shifted(trace.scores), shifted(trace.at_readout), shifted(trace.norms))
    return [replace(rows[0], trace=dropped), *rows[1:]]


def mlp_input_for_resid_mid(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    real = Anatomy.site

    def site(anatomy: Anatomy, checkpoint: Checkpoint) -> Site:
        if checkpoint.site == "resid_mid":
            return Site(f"{anatomy.layers[checkpoint.layer].path}.mlp", "input")
        return real(anatomy, checkpoint)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Anatomy, "site", site)
        return decode(model, prompts, **options)


def a_layer_off_by_one(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    real = Anatomy.site

    def site(anatomy: Anatomy, checkpoint: Checkpoint) -> Site:
        if checkpoint.site == "resid_post" and checkpoint.layer > 0:
            return real(anatomy, Checkpoint(checkpoint.layer - 1, "resid_post"))
        return real(anatomy, checkpoint)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Anatomy, "site", site)
        return decode(model, prompts, **options)


def positions_not_from_the_mask(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    real = LanguageModel.forward

    def forward(self: LanguageModel, **inputs: Any) -> Any:
        width, n_new = inputs["attention_mask"].shape[1], inputs["input_ids"].shape[1]
        return real(self, **{**inputs, "position_ids": torch.arange(width - n_new, width)[None]})

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LanguageModel, "forward", forward)
        return decode(model, prompts, **options)


def a_prefix_row_of_another_prompt(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    rows = decode(model, prompts, **options)
    position = next(n for n, (own, other) in enumerate(zip(prompts[0], prompts[1], strict=False)) if own != other)
    found = []
    for name in ("scores", "at_readout", "norms"):
        values = getattr(rows[0].trace, name).copy()
        values[:, position] = getattr(rows[1].trace, name)[:, position]
        found.append(values)
    return [replace(rows[0], trace=Trace(*found)), *rows[1:]]


def the_second_best_token_chosen_once(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
    """Where it is no near tie: just more than what rounding explains."""
    real, done = TokenChooser.choose, []
    least = read_limits(str(model.dtype).removeprefix("torch.")).cells["argmax"]

    def choose(self: TokenChooser, logits: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor) -> Any:
        tokens, logprobs = real(self, logits, rows, steps)
        best = logits.float().topk(2)
        gaps = (best.values[:, 0] - best.values[:, 1]) / logits.float().std(dim=-1)
        row = int(gaps.argmax())
        if not done and gaps[row] > least.ceiling + least.usual:
            done.append(row)
            tokens[row] = best.indices[row, 1]
            logprobs[row] = best.values[row, 1] - logits[row].float().logsumexp(-1)
        return tokens, logprobs

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TokenChooser, "choose", choose)
        rows = decode(model, prompts, **options)
    assert done
    return rows


FAULTS: list[tuple[Fault, str, str]] = [
    (one_score_changed, "llama", rf"score at resid_post\.0, position {POSITION}, trait random1"),
    (two_rows_swapped, "llama", r"score at resid_\w+\.\d"),
    (a_position_dropped, "llama", rf"score at resid_\w+\.\d, position \d+.* and position {POSITION} on$"),
    (mlp_input_for_resid_mid, "llama", r"score at resid_mid\.\d.*from checkpoint resid_mid\.0 and"),
    (positions_not_from_the_mask, "gpt2", r"score at resid_\w+\.\d.*from checkpoint resid_pre\.0 and"),
    (a_layer_off_by_one, "llama", r"score at resid_post\.\d.*from checkpoint resid_post\.1 and"),
    (a_prefix_row_of_another_prompt, "llama", r"score at resid_\w+\.\d, position \d+"),
    (the_second_best_token_chosen_once, "llama", r"argmax at position \d+"),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("fault", "architecture", "place"), FAULTS, ids=[f.__name__ for f, _, _ in FAULTS])
def test_a_fault_before_the_commit_is_named(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, fault: Fault, architecture: str, place: str, dtype: str
) -> None:
    plant(monkeypatch, fault)
    verdict = verify_run(*run_tiny(architecture, dtype), deep=True)
    assert not verdict.passed
    assert any(re.search(rf"^generation \w+ \(all/\d+\): {place}", line) for line in verdict.problems), verdict.problems


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_behind_the_end_of_a_response_is_named(
    run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """All its numbers are right; it should not be there."""

    def post_eos_row_kept(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
        endless = decode(replace(model, eos_token_ids=frozenset()), prompts, **options)
        return [cut(row, len(prompt), model.eos_token_ids) for row, prompt in zip(endless, prompts, strict=True)]

    def cut(row: Decoded, n_prompt: int, eos: frozenset[int]) -> Decoded:
        n = next((n + 2 for n, token in enumerate(row.response_ids) if token in eos), len(row.response_ids))
        kept = slice(0, n_prompt + n)
        trace = Trace(row.trace.scores[:, kept], row.trace.at_readout[:, kept], row.trace.norms[:, kept])
        return Decoded(row.response_ids[:n], row.logprobs[:n], trace)

    run_dir, model = run_tiny("llama", dtype)
    fifth = tokens_of(run_dir)[4]
    plant(monkeypatch, post_eos_row_kept)
    verdict = verify_run(*run_tiny("llama", dtype, model=replace(model, eos_token_ids=frozenset({fifth}))))
    (line,) = [line for line in verdict.problems if "ends a response" in line][:1]
    assert re.search(rf"generation \w+ \(all/\d+\): position \d+: token {fifth} ends a response, but 1 more", line)


def test_a_response_cut_short_is_named(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops_early(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
        return decode(model, prompts, **{**options, "max_new_tokens": 4})

    plant(monkeypatch, stops_early)
    verdict = verify_run(*run_tiny())
    assert any("stops after 4 of 10 tokens" in line for line in verdict.problems)


def test_a_token_that_was_not_drawn_is_named(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_seed(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
        return decode(model, prompts, **{**options, "seeds": [seed ^ 1 for seed in options["seeds"]]})

    plant(monkeypatch, other_seed)
    verdict = verify_run(*run_tiny(generation={"temperature": 1.0}))
    assert any(": draw at position" in line for line in verdict.problems)


def test_what_is_not_a_number_is_a_problem(run_tiny: RunTiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan_logprob(decode: Any, model: LanguageModel, prompts: Any, **options: Any) -> list[Decoded]:
        rows = decode(model, prompts, **options)
        rows[0].logprobs[3] = np.nan
        return rows

    monkeypatch.setattr(engine.Engine, "_not_finite", lambda _self, _row: None)
    plant(monkeypatch, nan_logprob)
    verdict = verify_run(*run_tiny())
    assert any(": logprob at position" in line for line in verdict.problems)
    assert None in [worst["difference"] for worst in verdict.described()["worst"]]


def test_a_sample_is_spread_over_the_shards_and_always_the_same(run_tiny: RunTiny) -> None:
    run_dir, model = run_tiny(prompts=[f"{word} {n}" for n in range(4) for word in ("sun", "rain", "moss")])
    seen: list[tuple[int, int]] = []
    verdicts = [verify_run(run_dir, model, sample=2, on_progress=lambda n, of: seen.append((n, of))) for _ in range(2)]
    assert [verdict.verified for verdict in verdicts] == [2, 2]
    assert seen == [(1, 2), (2, 2)] * 2
    assert [_places(verdict) for verdict in verdicts] == [_places(verdicts[0])] * 2


def test_another_model_is_refused(clean_run: tuple[Path, LanguageModel], saved_tiny: Any) -> None:
    run_dir, _ = clean_run
    for other in (saved_tiny("qwen3", "float32")[1], saved_tiny("llama", "bfloat16")[1]):
        verdict = verify_run(run_dir, other)
        assert not verdict.passed
        assert "nothing was replayed" in verdict.problems[0]
        assert verdict.verified == 0


def plant(monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    """Put a fault between the engine and the decoding of its batches; the timing before the run stays as it is."""
    real = engine.decode

    def faulty(model: LanguageModel, prompts: Any, *, on_row: Callable[[int, Decoded], None], **options: Any) -> None:
        for number, row in enumerate(fault(real, model, prompts, **options)):
            on_row(number, row)

    monkeypatch.setattr(engine, "decode", faulty)


def tokens_of(run_dir: Path) -> list[int]:
    """The response tokens of the run's first generation."""
    from traitscope.captures.reading import open_run

    tokens = open_run(run_dir).tokens.collect()
    first = tokens.filter(tokens["generation"] == tokens["generation"][0])
    return first.filter(first["phase"] == "response")["token_id"].to_list()


def _places(verdict: Verdict) -> list[str]:
    return [worst.where for worst in verdict.worst]
