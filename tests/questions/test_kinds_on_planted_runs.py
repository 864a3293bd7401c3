"""Bugs caught here: tokens, samples or shared generations counted as prompts, special tokens in a mean, steered
responses among the others, an interval for too few prompts, a verdict against
neutral replies that there are none of."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planted_runs import TRAIT, Planted, planted_run
from traitscope.errors import InputError
from traitscope.questions import attention_decay, commitment, confound, dose_response, drift
from traitscope.questions.answer import Answer, Curve, Curves
from traitscope.questions.kinds import KINDS as REGISTRY
from traitscope.questions.kinds import answer_question
from traitscope.questions.options import QuestionOptions

KINDS: dict[str, Any] = {
    "commitment-point": commitment,
    "drift": drift,
    "instruction-confound": confound,
    "dose-response": dose_response,
    "attention-decay": attention_decay,
}


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Asks a planted run: ``ask(kind, responses)``."""

    def call(kind: str, responses: list[Planted], neutral: np.ndarray | None = None, **options: Any) -> Answer:
        monkeypatch.setattr(KINDS[kind], "open_run", lambda path: planted_run(responses, neutral))
        return answer_question(kind, Path("planted"), QuestionOptions(**options))

    return call


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def step(at: int, n_tokens: int = 50) -> np.ndarray:
    return np.where(np.arange(n_tokens) >= at, 4.0, 0.0)


def test_prompts_that_commit_are_told_from_neutral_replies(ask: Any) -> None:
    responses = [Planted("moves", str(n), z + step(20)) for n, z in enumerate(noise(12, 50))]
    responses += [Planted("stays", str(n), z) for n, z in enumerate(noise(12, 50, seed=1))]
    values = {
        value["experiment"]: value for value in ask("commitment-point", responses, noise(40, 50)).values["experiments"]
    }
    assert values["moves"]["verdict"] == "more often"
    assert values["moves"]["median_fraction"] == pytest.approx(24 / 50, abs=0.05)
    assert values["stays"]["verdict"] == "no difference"
    assert values["all together"]["prompts"] == 24


def curves_of(answer: Answer) -> dict[str, Curve]:
    panel = next(panel for panel in answer.panels if isinstance(panel, Curves))
    return {curve.label: curve for curve in panel.curves}


def test_where_responses_settle_is_a_mean_over_prompts_whatever_their_samples(ask: Any) -> None:
    late = [Planted("moves", "late", z + step(20), sample=n, text=0) for n, z in enumerate(noise(6, 50))]
    later = [Planted("moves", str(n), z + step(28), text=n) for n, z in enumerate(noise(2, 50, seed=1), start=1)]
    stay = [Planted("moves", str(n), z, text=n) for n, z in enumerate(noise(3, 50, seed=4), start=3)]
    answer = ask("commitment-point", [*late, *later, *stay], noise(40, 50))
    (value,) = answer.values["experiments"]
    assert (value["after_start"], value["prompts"]) == (0.5, 6)
    assert value["median_fraction"] == pytest.approx(32 / 50, abs=0.05), "of three prompts two settle later"
    shares = np.array(curves_of(answer)["moves (6)"].y)
    assert shares[0] == 0.5
    assert np.isclose(shares, 4 / 6).any(), "six samples that settle are one prompt"


@pytest.mark.parametrize("kind", ["commitment-point", "drift"])
def test_samples_of_two_prompts_draw_no_curve(kind: str, ask: Any) -> None:
    responses = [Planted("few", str(n % 2), z, sample=n // 2, text=n % 2) for n, z in enumerate(noise(12, 50))]
    assert [label.split(" (")[0] for label in curves_of(ask(kind, responses, noise(40, 50)))] == ["neutral replies"]


def test_a_course_is_a_mean_over_prompts_whatever_their_samples(ask: Any) -> None:
    responses = [Planted("many", "a", np.full(30, 12.0), sample=n, text=0) for n in range(7)]
    responses += [Planted("many", str(n), np.zeros(30), text=n) for n in range(1, 6)]
    assert curves_of(ask("drift", responses, noise(40, 50)))["many"].y == pytest.approx([2.0] * 3)


def test_the_seed_moves_the_interval_of_each_commitment(ask: Any) -> None:
    responses = [Planted("moves", str(n), z + step(20)) for n, z in enumerate(noise(12, 50))]
    first, other = (ask("commitment-point", responses, noise(40, 50), seed=seed).values["prompts"] for seed in (0, 1))
    assert [row["commitment"] for row in first] == [row["commitment"] for row in other]
    assert [(row["low"], row["high"]) for row in first] != [(row["low"], row["high"]) for row in other]


def test_short_responses_few_prompts_and_old_vectors(ask: Any) -> None:
    responses = [Planted("few", str(n), z) for n, z in enumerate(noise(5, 50))]
    responses += [Planted("short", str(n), z) for n, z in enumerate(noise(9, 20))]
    answer = ask("commitment-point", responses, noise(40, 50), experiments=("few", "short"))
    assert [value["verdict"] for value in answer.values["experiments"]] == ["inconclusive"] * 3
    assert "inconclusive" in answer.findings[-2]
    with pytest.raises(InputError, match=r"hold no neutral trajectories.*run the suite again"):
        ask("commitment-point", responses)


def test_samples_and_shared_prompts_count_once(ask: Any) -> None:
    responses = [Planted("many", "1", z, sample=n, text=1) for n, z in enumerate(noise(20, 50))]
    responses += [Planted("again", "x", z, text=1) for z in noise(1, 50)]
    answer = ask("drift", responses, noise(40, 50))
    assert [value["prompts"] for value in answer.values["along"]] == [1, 1, 1]
    assert all(value["slope"]["low"] is None for value in answer.values["along"])


def test_drift_is_told_from_what_neutral_replies_do(ask: Any) -> None:
    ramp = 0.05 * np.arange(50)
    responses = [Planted("rising", str(n), z + ramp) for n, z in enumerate(noise(12, 50))]
    still = ask("drift", responses, noise(40, 50, seed=1)).values["along"][0]
    assert still["verdict"] == "rises"
    assert still["slope"]["value"] == pytest.approx(0.5, abs=0.1)
    alike = ask("drift", responses, noise(40, 50, seed=1) + ramp).values["along"][0]
    assert alike["verdict"] == "rises, like neutral"


@pytest.mark.parametrize("neutral", [None, noise(5, 50, seed=1), noise(40, 15, seed=1)])
def test_drift_without_neutral_replies_says_so(ask: Any, neutral: np.ndarray | None) -> None:
    responses = [Planted("rising", str(n), z + 0.05 * np.arange(50)) for n, z in enumerate(noise(12, 50))]
    answer = ask("drift", responses, neutral)
    assert answer.values["along"][0]["verdict"] == "rises (no neutral replies to compare)"
    assert "z rises by" in answer.findings[0]
    assert "fewer than 6 neutral replies" in answer.findings[0]
    assert not any("nan" in finding or "neutral replies do" in finding for finding in answer.findings)


def test_a_repeated_line_is_one_prompt_across_turns(ask: Any) -> None:
    responses = [Planted("talk", str(n), np.full(5, 3.0), earlier=[np.full(4, 1.0)], text=0) for n in range(7)]
    (value,) = ask("drift", responses).values["turns"]
    assert (value["prompts"], value["slope"]["low"]) == (1, None)


def test_turns_of_the_assistant(ask: Any) -> None:
    responses = [Planted("talk", str(n), np.full(5, 3.0), earlier=[np.full(4, 1.0), np.full(6, 2.0)]) for n in range(7)]
    (value,) = ask("drift", responses).values["turns"]
    assert [turn["value"] for turn in value["turns"]] == pytest.approx([1, 2, 3])
    assert value["slope"]["value"] == pytest.approx(1)
    assert value["p_zero_adjusted"] == pytest.approx(2 / 2**7)


def arms(natural: float, instructed: float, n: int = 12) -> list[Planted]:
    levels = {"natural": natural, "instructed": instructed, "plain": 0.0}
    return [
        Planted(f"hedging-{arm}", str(number), z + level, at_prompt=float(z[0]) - level)
        for seed, (arm, level) in enumerate(levels.items())
        for number, z in enumerate(noise(n, 9, seed=seed))
    ]


@pytest.mark.parametrize(
    ("natural", "instructed", "verdict"), [(3, 0, "clean"), (3, 4, "confounded"), (0, 3, "inconclusive")]
)
def test_arms_are_found_by_name_and_compared(ask: Any, natural: float, instructed: float, verdict: str) -> None:
    answer = ask("instruction-confound", [*arms(natural, instructed), Planted("other-natural", "1", noise(9))])
    response, at_prompt = answer.values["compared"]
    assert (response["behaviour"], response["trait"], response["place"]) == ("hedging", TRAIT, "response")
    assert response["found"]["verdict"] == verdict
    assert response["means"]["natural"]["value"] == pytest.approx(natural, abs=0.3)
    assert at_prompt["means"]["natural"]["value"] == pytest.approx(-natural, abs=0.8)


def test_arms_that_are_missing_or_too_small(ask: Any) -> None:
    with pytest.raises(InputError, match="no behaviour has three experiments"):
        ask("instruction-confound", [Planted("hedging-natural", "1", noise(9))])
    answer = ask("instruction-confound", arms(3, 0, n=5))
    assert answer.values["compared"][0]["found"]["verdict"] == "inconclusive"
    assert "natural 5, instructed 5, plain 5; 6 are needed" in answer.findings[0]


def test_doses_are_compared_within_prompts_and_left_out_elsewhere(ask: Any) -> None:
    doses = (-0.2, 0.0, 0.2)
    responses = [
        Planted("dose", str(n), noise(9, seed=n) + 10 * dose, alpha=dose, text=n) for n in range(8) for dose in doses
    ]
    lacking = [Planted("dose", "empty", noise(0 if dose else 9), alpha=dose, text=99) for dose in doses]
    (value,) = ask("dose-response", responses + lacking).values["followed"]
    assert (value["prompts"], value["left_out"], value["verdict"]) == (8, 1, "rises")
    assert value["found"]["slope"]["value"] == pytest.approx(10)
    assert ask("drift", responses).values["along"][0]["prompts"] == 0  # nine tokens are too few, and only dose 0 counts
    with pytest.raises(InputError, match="no experiment is steered"):
        ask("dose-response", [Planted("plain", "1", noise(9))])


def attending(weight: np.ndarray, window: int, user: int) -> np.ndarray:
    """``[1, n, n]``: an even split in a window, but that queries behind the position ``user`` give it ``weight``
    ``[n]`` times as much as the split would."""
    n = len(weight)
    behind = np.subtract.outer(np.arange(n), np.arange(n))
    pattern = ((behind >= 0) & (behind < window)).astype(float)
    pattern[1:, 0] = 0
    pattern /= pattern.sum(axis=1, keepdims=True)
    own = np.arange(user + 1, n)
    moved = pattern[own, user] * (weight[own] - 1)
    pattern[own, user] += moved
    pattern[own, own] -= moved
    return pattern[None]


def test_a_head_under_a_sliding_window_is_held_against_an_even_split_of_it(ask: Any) -> None:
    even, falling = np.ones(84), 2.0 ** (-np.arange(84) / 10)
    user = 22
    pattern = np.concatenate([attending(weight, 40, user) for weight in (even, falling)])
    talk = [np.zeros(user - 2)]
    responses = [Planted("opened", str(n), noise(60), earlier=talk, pattern=pattern) for n in range(8)]
    still, decaying = ask("attention-decay", responses).values["heads"]
    assert still["verdict"] == "no decay"
    assert (decaying["verdict"], decaying["half_life"]) == ("decays", pytest.approx(10, rel=0.01))


def test_the_course_of_a_head_is_a_mean_over_prompts_whatever_their_samples(ask: Any) -> None:
    twice, once = (attending(np.full(34, weight), 99, 2) for weight in (1.5, 1.0))
    responses = [Planted("opened", str(n), noise(30), text=n, pattern=once) for n in range(5)]
    responses += [Planted("opened", "5", noise(30), sample=0, text=5, pattern=once)]
    responses += [Planted("opened", "5", noise(30), sample=n, text=5, pattern=twice) for n in range(1, 4)]
    (head,) = ask("attention-decay", responses).values["heads"]
    assert head["curve_log2"][:30] == pytest.approx([0.75 * np.log2(1.25) / 6] * 30)


@pytest.mark.parametrize(
    ("kind", "options", "flag", "readers"),
    [
        ("drift", {"head": 0}, "--head", "attention-decay"),
        ("emergence", {"experiments": ("a",)}, "--experiment", "attention-decay, commitment-point, drift"),
        ("attention-decay", {"traits": (TRAIT,)}, "--trait", "superposition, emergence"),
    ],
)
def test_an_option_that_a_kind_does_not_read_is_refused(
    kind: str, options: dict[str, Any], flag: str, readers: str
) -> None:
    with pytest.raises(InputError, match=f"{flag} means nothing to {kind}.*{readers}"):
        answer_question(kind, Path("planted"), QuestionOptions(**options))


def test_every_option_is_read_by_some_kind() -> None:
    read = {name for kind in REGISTRY.values() for name in kind.reads}
    assert read == {field.name for field in fields(QuestionOptions)}


def test_unknown_names_are_refused(ask: Any) -> None:
    with pytest.raises(InputError, match="--trait 'plantet' is not in this run; did you mean planted"):
        ask("drift", [Planted("a", "1", noise(30))], traits=("plantet",))
    with pytest.raises(InputError, match="--experiment 'b' is not in this run"):
        ask("drift", [Planted("a", "1", noise(30))], experiments=("b",))
    with pytest.raises(InputError, match="give --position or --token, not both"):
        ask("attention-decay", [Planted("a", "1", noise(30))], position=2, token="t1")
    with pytest.raises(InputError, match="--kind 'drifts' is unknown; did you mean drift"):
        answer_question("drifts", Path("planted"), QuestionOptions())
