"""Bugs caught here: a generation lost or doubled between batches and shards, a shard that outgrows the memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from traitscope.model.sampling import Sampling
from traitscope.run.batching import SHARD_BYTES, make_batches, make_shards, most_per_shard
from traitscope.run.engine import GenerationTask
from traitscope.suite.rendering import Rendered


def _task(number: int, n_prompt: int, temperature: float) -> GenerationTask:
    prompt = Rendered((1,) * n_prompt, (None,) * n_prompt, (None,) * n_prompt)
    return GenerationTask(str(number), prompt, None, 10, Sampling(temperature), None, frozenset(), (0,))


@given(
    tasks=st.lists(st.tuples(st.integers(1, 30), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40),
    width=st.integers(1, 9),
    shard_size=st.one_of(st.none(), st.integers(1, 20)),
    seconds=st.one_of(st.none(), st.floats(0.1, 200)),
    most=st.one_of(st.none(), st.integers(1, 20)),
)
def test_every_generation_is_in_one_batch_of_one_shard(
    tasks: list[tuple[int, float]], width: int, shard_size: int | None, seconds: float | None, most: int | None
) -> None:
    asked = [_task(number, *given) for number, given in enumerate(tasks)]
    batches = make_batches(asked)
    for batch in batches:
        assert len({task.sampling for task in batch}) == 1
        assert [task.n_prompt for task in batch] == sorted((task.n_prompt for task in batch), reverse=True)
    shards = make_shards(
        batches,
        ["long"],
        width=width,
        shard_size=shard_size,
        seconds_per_turn=seconds,
        bytes_of=lambda task: 1000 * (task.n_prompt + 10),
        most=most,
    )
    assert most is None or max(shard.n_generations - len(shard.too_long) for shard in shards) <= most
    found = [generation for shard in shards for batch in shard.batches for generation in batch]
    assert sorted(found) == sorted(task.id for task in asked)
    assert [shard.too_long for shard in shards] == [("long",), *[()] * (len(shards) - 1)]


def test_several_workers_have_shards_to_share_and_rows_to_generate_together() -> None:
    assert most_per_shard(93, width=32, n_workers=1) is None
    assert most_per_shard(1000, width=32, n_workers=2) == 125  # four shards each
    assert most_per_shard(93, width=32, n_workers=2) == 32  # as wide as one worker generates
    assert most_per_shard(20, width=32, n_workers=2) == 10  # one shard each
    assert most_per_shard(3, width=32, n_workers=4) == 1


def test_a_shard_is_closed_before_its_captures_fill_the_memory() -> None:
    batches = make_batches([_task(number, 90, 0.0) for number in range(100)])
    shards = make_shards(
        batches, [], width=10, shard_size=None, seconds_per_turn=0.001, bytes_of=lambda _task: SHARD_BYTES // 20
    )
    assert [shard.n_generations for shard in shards] == [20] * 5
    assert [len(shard.batches) for shard in shards] == [1] * 5


def test_a_run_of_nothing_but_long_prompts_has_a_shard_that_records_them() -> None:
    (shard,) = make_shards([], ["a", "b"], width=3, shard_size=None, seconds_per_turn=None, bytes_of=lambda _task: 1)
    assert (shard.batches, shard.too_long) == ((), ("a", "b"))
