"""Bugs caught here: a push that lands beside the captured state, on position 0, on padding, on another row's dose or on
the prompt of a row that shares it; hooks that stay; a replay that is pushed otherwise than its generation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny_models import CONFIGS
from traitscope.model.capture import ReaderBank, capturing
from traitscope.model.decode import Decoded, decode
from traitscope.model.loading import LanguageModel
from traitscope.model.replay import replay, replay_scores, replay_steered_logprobs, steered
from traitscope.model.sampling import Sampling
from traitscope.model.steering import Positions, Steering
from traitscope.model.watch import watch


def random_bank(model: LanguageModel) -> ReaderBank:
    readers = torch.randn(
        2, len(model.anatomy.checkpoints), model.anatomy.d_model, generator=torch.Generator().manual_seed(0)
    )
    return ReaderBank(("one", "two"), readers, (2, 3))


PROMPTS = [[1, 40, 41, 42, 43, 44, 45], [1, 50, 51], [1, 40, 41, 42, 43, 44, 45], [1, 60, 61, 62, 63]]
N_NEW = 6


def steering_of(model: LanguageModel, alpha: float, positions: Positions, layers: tuple[int, ...] = (1,)) -> Steering:
    generator = torch.Generator().manual_seed(3)
    return Steering(
        {layer: alpha * torch.randn(model.anatomy.d_model, generator=generator) for layer in layers}, positions
    )


def generated(
    model: LanguageModel, steering: list[Steering | None], prompts: list[list[int]] | None = None
) -> list[Decoded]:
    chosen = prompts or PROMPTS
    return decode(
        model,
        chosen,
        max_new_tokens=N_NEW,
        sampling=Sampling(),
        seeds=[0] * len(chosen),
        bank=random_bank(model),
        steering=steering,
    )


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_a_pushed_generation_is_what_its_replay_gives(
    tiny: Callable[..., LanguageModel], architecture: str, positions: Positions
) -> None:
    model = tiny(architecture)
    steering = [steering_of(model, alpha, positions, (0, 2)) if alpha else None for alpha in (0.5, -0.7, 0.0, 1.0)]
    for prompt, row, push in zip(PROMPTS, generated(model, steering), steering, strict=True):
        again = replay_scores(model, prompt, row.response_ids, random_bank(model), push)
        assert row.trace is not None
        assert again.trace is not None
        np.testing.assert_allclose(row.trace.scores, again.trace.scores, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(row.trace.norms, again.trace.norms, rtol=1e-4)
        np.testing.assert_allclose(row.logprobs, again.logprobs, atol=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_the_first_pushed_checkpoint_moves_by_exactly_the_addition(
    tiny: Callable[..., LanguageModel], architecture: str, positions: Positions
) -> None:
    model = tiny(architecture)
    steering = steering_of(model, 1.0, positions)
    token_ids, n_prompt = [1, 40, 41, 42, 50, 51], 4
    plain, pushed = states_of(model, token_ids), states_of(model, token_ids, steering, n_prompt)
    names = [checkpoint.name for checkpoint in model.anatomy.checkpoints]
    at = names.index("resid_post.1")
    expected = torch.zeros_like(plain[at])
    first, last = {"prompt": (1, 4), "response": (4, 6), "all": (1, 6)}[positions]
    expected[first:last] = steering.additions[1]
    torch.testing.assert_close(pushed[at] - plain[at], expected, rtol=1e-4, atol=1e-4)
    for before in range(at):
        torch.testing.assert_close(pushed[before], plain[before], rtol=0, atol=0)
    assert not torch.allclose(pushed[-1][last - 1], plain[-1][last - 1] + steering.additions[1], atol=1e-3) or (
        at == len(names) - 1
    )


def states_of(
    model: LanguageModel, token_ids: list[int], steering: Steering | None = None, n_prompt: int = 1
) -> list[torch.Tensor]:
    """Every checkpoint's states ``[seq, d_model]``."""
    states: list[torch.Tensor] = []
    with (
        steered(model, steering, n_prompt, len(token_ids)),
        watch(model.module, model.anatomy, lambda _checkpoint, state: states.append(state.float().clone())),
    ):
        replay(model, token_ids)
    return states


@pytest.mark.parametrize("architecture", CONFIGS)
def test_states_are_those_of_a_hook_written_out_by_hand(tiny: Callable[..., LanguageModel], architecture: str) -> None:
    model = tiny(architecture)
    steering = steering_of(model, 2.0, "response")
    token_ids, n_prompt = [1, 40, 41, 42, 50, 51], 4

    def add(_module: object, _args: object, output: object) -> object:
        state = output[0] if isinstance(output, tuple) else output
        added = state.clone()  # type: ignore[union-attr]
        added[:, n_prompt:] += steering.additions[1]
        return (added, *output[1:]) if isinstance(output, tuple) else added

    handle = model.module.get_submodule(model.anatomy.layers[1].path).register_forward_hook(add)
    try:
        by_hand = states_of(model, token_ids)
    finally:
        handle.remove()
    for ours, theirs in zip(states_of(model, token_ids, steering, n_prompt), by_hand, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.lists(st.integers(3, 250), min_size=1, max_size=9), st.sampled_from([0.0, -0.8, 0.8])),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["prompt", "response", "all"]),
)
def test_a_row_does_not_depend_on_the_doses_beside_it(
    tiny: Callable[..., LanguageModel], rows: list[tuple[list[int], float]], positions: Positions
) -> None:
    model = tiny("llama", eos=(2, 40, 41, 42, 43, 44))
    prompts = [[1, *tokens] for tokens, _ in rows]
    steering = [steering_of(model, alpha, positions) if alpha else None for _, alpha in rows]
    for number, together in enumerate(generated(model, steering, prompts)):
        alone = generated(model, [steering[number]], [prompts[number]])[0]
        assert together.response_ids == alone.response_ids
        assert together.trace is not None
        assert alone.trace is not None
        np.testing.assert_allclose(together.trace.scores, alone.trace.scores, rtol=1e-3, atol=1e-4)


def test_no_dose_is_no_steering_and_hooks_are_gone(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    plain = generated(model, [None] * 4)
    hooks = sum(len(module._forward_hooks) for module in model.module.modules())
    for row, same in zip(plain, generated(model, [steering_of(model, 0.0, "all")] * 4), strict=True):
        assert row.response_ids == same.response_ids
    with pytest.raises(RuntimeError, match="stop"), steered(model, steering_of(model, 9.0, "all"), 2, 4):
        raise RuntimeError("stop")
    assert sum(len(module._forward_hooks) for module in model.module.modules()) == hooks
    assert [row.response_ids for row in generated(model, [None] * 4)] == [row.response_ids for row in plain]


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("positions", ["prompt", "response", "all"])
def test_log_probabilities_of_many_doses_are_those_of_each_alone(
    tiny: Callable[..., LanguageModel], architecture: str, positions: Positions
) -> None:
    model = tiny(architecture)
    prompt, response = [1, 40, 41, 42, 43], [50, 51, 52]
    doses = [None, steering_of(model, 0.8, positions), steering_of(model, -0.8, positions)]
    found = replay_steered_logprobs(model, prompt, response, doses)
    for row, push in zip(found, doses, strict=True):
        with steered(model, push, len(prompt), len(prompt) + len(response)):
            expected = replay(model, [*prompt, *response], logits_from=len(prompt))
        np.testing.assert_allclose(row, expected, atol=1e-4)
    assert np.abs(found[1] - found[0]).max() > 1e-3


def test_capture_holds_the_push(tiny: Callable[..., LanguageModel]) -> None:
    model = tiny("llama")
    bank, steering = random_bank(model), steering_of(model, 3.0, "all")
    at = [checkpoint.name for checkpoint in model.anatomy.checkpoints].index("resid_post.1")
    scores = []
    for push in (None, steering):
        with (
            steered(model, push, 3, 5),
            capturing(model.module, model.anatomy, bank, model.device) as capture,
        ):
            replay(model, [1, 40, 41, 50, 51])
            scores.append(capture.take()[at, :, : len(bank.traits)])
    moved = (scores[1] - scores[0])[1:]
    torch.testing.assert_close(
        moved, (bank.readers[:, at] @ steering.additions[1]).expand_as(moved), atol=1e-4, rtol=1e-3
    )
