"""Bugs caught here: rates over the wrong time, embeddings counted as products, advice without a gain, a lost shard
when writing fails."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from tiny_models import VOCAB
from traitscope.errors import RunError
from traitscope.model.facts import facts_of_module
from traitscope.model.loading import LanguageModel
from traitscope.model.meter import ForwardWork
from traitscope.model.replay import replay
from traitscope.run.ceilings import Ceilings
from traitscope.run.pace import Pace
from traitscope.run.utilisation import CeilingShares, advice, gain_of_narrow, utilisation
from traitscope.run.writer import ShardWriter


def test_work_is_counted_and_rated_against_the_ceilings(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    facts = facts_of_module(model.module)
    before = model.meter.work()
    replay(model, list(range(60, 70)), logits_from=7)
    work = model.meter.work() - before
    assert (work.passes, work.tokens, work.logit_rows) == (1, 10, 4)
    products = sum(p.numel() for n, p in model.module.named_parameters() if "embed" not in n and "lm_head" not in n)
    assert facts.forward_flops(10, 4) == 2 * (products * 10 + VOCAB * 32 * 4)
    used = utilisation(
        ForwardWork(passes=10, tokens=10, logit_rows=10, seconds=2.0),
        generated_tokens=8,
        generating_seconds=4.0,
        wall_seconds=2.0,  # of two workers
        facts=facts,
        dtype=torch.float32,
        ceilings=Ceilings(copy_bytes_per_second=1e9, flops_per_second=1e9),
        memory_bytes=1,
        memory_there_bytes=2,
        advice="",
    )
    assert used is not None
    assert (used.tokens_per_second, used.forward_share) == (4.0, 0.5)
    assert used.weight_bytes_per_second == pytest.approx(10 * facts.n_parameters * 4 / 2.0)
    assert used.of_copy == pytest.approx(used.weight_bytes_per_second / 1e9)
    assert used.flops_per_second == pytest.approx(facts.forward_flops(10, 10) / 2.0)


def _advice(**changes: object) -> str:
    pace = Pace((1, 2, 4, 8), (1.0, 1.0, 1.0, 1.0), 0.0, 0.1, 0.0, 0.0, 0)
    given = {
        "forward_share": 0.95,
        "width": 8,
        "most_rows": 100,
        "n_generations": 50,
        "pace": pace,
        "dtype": torch.float32,
        "narrow": None,
        "shares": CeilingShares(of_copy=0.4, of_matrix=0.3),
    }
    return advice(**{**given, **changes})  # type: ignore[arg-type]


def test_advice_names_the_change_that_promises_most() -> None:
    assert _advice() == "no setting promises more than a tenth"
    assert "a batch of 8 instead of 2 (--batch-size was given) generates 4.0 times" in _advice(width=2)
    assert "no more prompts" in _advice(width=2, n_generations=2)
    assert _advice(width=2, most_rows=2) == "no setting promises more than a tenth"
    assert "--dtype bfloat16" in _advice(narrow=(torch.bfloat16, 1.8))
    assert "generates about 1.5 times" in _advice(narrow=(torch.bfloat16, 2.0))
    assert _advice(narrow=(torch.bfloat16, 0.1)) == "no setting promises more than a tenth"
    assert _advice(forward_share=0.5).startswith("50% of the time passed outside")


def test_a_narrow_dtype_speeds_up_what_products_and_weights_take_and_nothing_else() -> None:
    assert gain_of_narrow(CeilingShares(0.0, 0.0), 5.0) == 1.0
    assert gain_of_narrow(CeilingShares(0.0, 1.0), 5.0) == pytest.approx(5.0)
    assert gain_of_narrow(CeilingShares(1.5, 0.0), 5.0) == pytest.approx(2.0)  # a copy that counts bytes read alone
    assert gain_of_narrow(CeilingShares(0.46, 0.24), 5.2) == pytest.approx(1.74, abs=0.01)


def test_one_shard_is_written_beside_the_next_and_told_of_in_the_callers_thread() -> None:
    may_end, told = threading.Event(), []
    with ShardWriter() as writer:
        writer.write(lambda: may_end.wait(5) and None, lambda: told.append(threading.current_thread()))
        assert told == []
        may_end.set()
        writer.finish()
    assert told == [threading.main_thread()]


def test_a_shard_that_cannot_be_written_is_raised_and_not_told_of() -> None:
    told: list[int] = []

    def fail() -> None:
        raise RunError("the disk is full")

    with ShardWriter() as writer:
        writer.write(fail, lambda: told.append(1))
        with pytest.raises(RunError, match="disk is full"):
            writer.write(lambda: None, lambda: told.append(2))
    assert told == []
