"""Bugs caught here: an option that changes nothing or is not recorded, a cached fit found under other options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny_models import SCENARIOS
from traitscope.errors import InputError
from traitscope.model.loading import LanguageModel
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.methods import METHODS, energy_of_two
from traitscope.traits.options import FitOptions
from traitscope.traits.pooling import Pooling, pool_pairs
from traitscope.traits.scenarios import load_scenarios
from traitscope.traits.store import find_trait, vectors_for
from traitscope.traits.vectors import TraitVectors, load_vectors


@pytest.fixture
def fit(tiny: Callable[..., LanguageModel], tiny_cache: Path) -> Callable[[FitOptions], TraitVectors]:
    return lambda options: vectors_for(tiny("llama"), [find_trait(str(SCENARIOS), Path())], options=options)[0]


def test_reader_and_steerer_are_those_of_their_methods_over_what_is_pooled(
    fit: Callable[[FitOptions], TraitVectors], tiny: Callable[..., LanguageModel]
) -> None:
    pooling = Pooling.parse("response:0:5")
    vectors = fit(FitOptions("logistic", "pca", pooling))
    style, train = PromptStyle(None, {}, BASE_TEMPLATE), load_scenarios(SCENARIOS).splits.train
    pairs = pool_pairs(tiny("llama"), train, style, lambda: None, pooling)
    for tensor, method in ((vectors.reader, "logistic"), (vectors.steerer, "pca")):
        expected = METHODS[method](pairs.positive[:, 4], pairs.negative[:, 4])
        torch.testing.assert_close(tensor[4], torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5)
    recorded = vectors.origin.method
    assert (recorded["reader"], recorded["steerer"], recorded["pooling"]) == ("logistic", "pca", "response:0:5")


def test_directions_avoid_those_of_other_traits_and_say_so(fit: Callable[[FitOptions], TraitVectors]) -> None:
    plain = fit(FitOptions())
    random = torch.nn.functional.normalize(torch.randn(2, *plain.reader.shape), dim=-1)
    other = replace(plain, trait="noise", reader=random[0], steerer=random[1])
    avoiding = fit(FitOptions(avoided=(other,)))
    for kind in ("reader", "steerer"):
        along = (getattr(avoiding, kind) * getattr(other, kind)).sum(dim=-1)
        torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-6)
        assert ((getattr(avoiding, kind) * getattr(plain, kind)).sum(dim=-1) > 0.8).all()
    assert list(avoiding.origin.method["orthogonal_to"]) == ["noise"]
    again = fit(FitOptions(avoided=(replace(other, reader=random[1]),)))
    assert not torch.equal(again.reader, avoiding.reader), "the cache knows the avoided trait by more than its name"
    assert torch.equal(fit(FitOptions()).reader, plain.reader)


def test_the_card_tells_how_concentrated_the_directions_are(fit: Callable[[FitOptions], TraitVectors]) -> None:
    vectors = fit(FitOptions())
    for kind in ("reader", "steerer"):
        shares = energy_of_two(getattr(vectors, kind).numpy())
        told = vectors.origin.card["energy_top2"][kind]
        assert told["readout"] == pytest.approx(shares[vectors.readout], abs=1e-4)
        assert told["largest"] == pytest.approx(shares.max(), abs=1e-4)
        assert told["largest_at"] == vectors.checkpoints[int(np.argmax(shares))]


def test_unknown_methods_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="method 'ldaa' is unknown; did you mean lda"):
        FitOptions(reader="ldaa")


def test_options_of_the_command_reach_the_file(
    command: Any, tiny_directory: Path, tmp_path: Path, own_cache: Path
) -> None:
    whisper = tmp_path / "whisper.yaml"
    text = SCENARIOS.read_text().replace("name: loudness", "name: whisper")
    whisper.write_text(
        text.replace("positive:", "swap:").replace("negative:", "positive:").replace("swap:", "negative:")
    )
    options = ["--reader", "mean_diff", "--steerer", "random", "--pooling", "response:1:"]
    fit = ["traits", "fit", SCENARIOS, "--model", tiny_directory, *options]
    code, _, err = command(*fit, "--orthogonal-to", SCENARIOS)
    assert code == 2
    assert "loudness cannot be made orthogonal to itself" in err
    code, _, err = command(*fit, "--orthogonal-to", whisper)
    assert code == 1
    assert "nothing of it is left" in err, "the opposite trait has the same direction"
    assert command(*fit, "--out", tmp_path / "out")[0] == 0
    file = tmp_path / "out" / "loudness.safetensors"
    code, _, err = command("traits", "fit", file, "--model", tiny_directory, "--reader", "pca")
    assert code == 2
    assert "a vector file is fitted already" in err
    method = load_vectors(file).origin.method
    assert {**method, "neutral_tokens": 0, "revision": 0} == {
        "reader": "mean_diff",
        "steerer": "random",
        "pooling": "response:1:",
        "neutral_tokens": 0,
        "revision": 0,
    }
