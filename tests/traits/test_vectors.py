"""Bugs caught here: a field lost on disk, vectors of another model used in silence, a fit that is not repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_models import SCENARIOS
from traitscope.errors import InputError
from traitscope.model.decode import decode
from traitscope.model.loading import LanguageModel
from traitscope.model.sampling import Sampling
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle, render
from traitscope.suite.tokens import TokenDescriber
from traitscope.traits import store
from traitscope.traits import vectors as vector_module
from traitscope.traits.scenarios import load_neutral, load_scenarios
from traitscope.traits.store import bank_of, cached_vectors, find_trait, vectors_for
from traitscope.traits.vectors import REGIONS, TraitVectors, load_vectors, save_vectors


@pytest.fixture
def vectors(tiny: Callable[..., LanguageModel], tiny_cache: Path) -> TraitVectors:
    return vectors_for(tiny("llama"), [find_trait(str(SCENARIOS), Path())])[0]


def test_a_file_gives_back_what_was_saved(vectors: TraitVectors, tmp_path: Path) -> None:
    path = tmp_path / "loudness.safetensors"
    save_vectors(vectors, path)
    again = load_vectors(path)
    assert replace(again, reader=vectors.reader, steerer=vectors.steerer, calibration=vectors.calibration) == vectors
    assert torch.equal(again.reader, vectors.reader)
    assert torch.equal(again.steerer, vectors.steerer)
    for region in REGIONS:
        for found, saved in (
            (again.calibration.mean, vectors.calibration.mean),
            (again.calibration.std, vectors.calibration.std),
        ):
            torch.testing.assert_close(found[region], saved[region], rtol=0, atol=0, equal_nan=True)
    assert torch.equal(again.calibration.write, vectors.calibration.write)
    torch.testing.assert_close(again.calibration.trajectory, vectors.calibration.trajectory, equal_nan=True)
    assert list(tmp_path.iterdir()) == [path]


def test_vectors_are_unit_and_cover_every_checkpoint(vectors: TraitVectors) -> None:
    assert vectors.reader.shape == vectors.steerer.shape == (7, 32)
    for tensor in (vectors.reader, vectors.steerer):
        torch.testing.assert_close(tensor.norm(dim=-1), torch.ones(7))
    assert vectors.readout_name.startswith("resid_post.")


def test_fitted_vectors_are_found_again_without_the_model(
    tiny: Callable[..., LanguageModel], vectors: TraitVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "fit_traits", None)
    again = vectors_for(tiny("llama"), [find_trait(str(SCENARIOS), Path())])[0]
    assert torch.equal(again.reader, vectors.reader)


def test_calibration_is_the_statistics_of_neutral_replies(
    tiny: Callable[..., LanguageModel], vectors: TraitVectors
) -> None:
    model = tiny("llama")
    style = PromptStyle(None, {}, BASE_TEMPLATE)
    describer = TokenDescriber(model.tokenizer)
    tokens, means, last, norms = [], [], [], []
    at_readout: list[list[float]] = []
    for text in load_neutral().prompts:
        prompt = render(model.tokenizer, [{"role": "user", "content": text}], style)
        row = decode(
            model, [prompt.token_ids], max_new_tokens=50, sampling=Sampling(), seeds=[0], bank=bank_of([vectors])
        )[0]
        content = describer.rows(prompt, row.response_ids).content()
        assert row.trace is not None
        if content.any():
            tokens.append(row.trace.scores[:, content, 0])
            means.append(tokens[-1].mean(axis=1))
            at_readout.append(tokens[-1][vectors.readout].tolist())
            last.append(row.trace.scores[:, len(prompt.token_ids) - 1, 0])
            norms.append(row.trace.norms[:, content])
    expected = {
        "response_token": np.concatenate(tokens, axis=1),
        "response_mean": np.stack(means, axis=1),
        "prompt_last": np.stack(last, axis=1),
    }
    for region, values in expected.items():
        np.testing.assert_allclose(vectors.calibration.mean[region], values.mean(1), rtol=1e-3, atol=1e-4)
        deviation = values.std(1, ddof=1)
        deviation[deviation < 1e-6 * np.median(np.concatenate(norms, axis=1), axis=1)] = np.nan
        np.testing.assert_allclose(vectors.calibration.std[region], deviation, rtol=1e-3)
    assert vectors.calibration.std["prompt_last"][0].isnan(), "every prompt ends in the same token"
    assert not vectors.calibration.std["response_token"].isnan().any()
    np.testing.assert_allclose(vectors.calibration.norm, np.median(np.concatenate(norms, axis=1), axis=1), rtol=1e-3)
    trajectories = [row[: int((~row.isnan()).sum())].tolist() for row in vectors.calibration.trajectory]
    for found, expected_row in zip(sorted(trajectories), sorted(at_readout), strict=True):
        np.testing.assert_allclose(found, expected_row, rtol=1e-3, atol=1e-4)


def test_mean_writes_up_to_the_readout_sum_to_its_mean_score(vectors: TraitVectors) -> None:
    calibration, readout = vectors.calibration, vectors.readout
    torch.testing.assert_close(
        calibration.write.sum(), calibration.mean["response_token"][readout], rtol=1e-4, atol=1e-4
    )
    assert (calibration.write[readout + 1 :] == 0).all()


def test_vectors_of_another_model_are_refused_or_transferred(
    tiny: Callable[..., LanguageModel], vectors: TraitVectors, tmp_path: Path
) -> None:
    path = tmp_path / "v.safetensors"
    save_vectors(vectors, path)
    reference = find_trait(str(path), Path())
    other = tiny("qwen3")
    with pytest.raises(InputError, match=r"fitted on LlamaForCausalLM .* --allow-foreign"):
        vectors_for(other, [reference])
    carried = vectors_for(other, [reference], allow_foreign=True)[0]
    assert carried.origin.verdict == "transferred"
    assert torch.equal(carried.reader, vectors.reader)
    assert not torch.equal(carried.calibration.norm, vectors.calibration.norm)
    with pytest.raises(InputError, match="do not fit this model's"):
        vectors_for(tiny("gpt_neox"), [reference], allow_foreign=True)


def test_the_cache_passes_over_files_of_an_older_format(
    vectors: TraitVectors, tiny_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = load_scenarios(SCENARIOS)
    current = cached_vectors(scenarios)
    old = current[0].with_name("loudness-0000000000000000.safetensors")
    with monkeypatch.context() as earlier:
        earlier.setattr(vector_module, "FORMAT_VERSION", "1")
        save_vectors(vectors, old)
    try:
        assert cached_vectors(scenarios) == current
        with pytest.raises(InputError, match="fit it again if it was by an older one"):
            load_vectors(old)
    finally:
        old.unlink()


def test_damaged_vector_files_are_refused(vectors: TraitVectors, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(b"not a tensor")
    with pytest.raises(InputError, match="no readable safetensors"):
        load_vectors(path)
    save_file({"reader": torch.zeros(2)}, path)
    with pytest.raises(InputError, match="not written by this version"):
        load_vectors(path)
    save_vectors(replace(vectors, reader=torch.full_like(vectors.reader, torch.nan)), path)
    with pytest.raises(InputError, match="reader holds values that are not finite"):
        load_vectors(path)
    assert load_file(path)["reader"].isnan().all()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("uncertainty", r"trait 'uncertainty' is unknown; did you mean uncertainty_calibration"),
        ("./none.yaml", "no such file"),
        ("./none.safetensors", "no such file"),
        ("./old.pt", r"without a calibration.*traitscope traits import \./old\.pt"),
    ],
)
def test_references_that_mean_no_trait(reference: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        find_trait(reference, tmp_path)
