"""Bugs caught here: a matrix read along the wrong side, a checkpoint without a direction compared, a look at the sealed
test split that nobody asked for."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from tiny_models import SCENARIOS
from traitscope.model.loading import LanguageModel
from traitscope.report.comparison import print_comparison
from traitscope.report.comparison_picture import save_picture
from traitscope.traits import between
from traitscope.traits.scenarios import load_scenarios
from traitscope.traits.store import find_trait, vectors_for


@pytest.fixture
def opposite(tmp_path: Path) -> Path:
    """The scenario set of the other tests with its poles swapped, related as it says."""
    text = SCENARIOS.read_text().replace("name: loudness", "name: whisper\nrelated: {loudness: its opposite}")
    swapped = text.replace("positive:", "swap:").replace("negative:", "positive:").replace("swap:", "negative:")
    path = tmp_path / "whisper.yaml"
    path.write_text(swapped)
    return path


def test_a_trait_and_its_opposite(
    command: Any, tiny_directory: Path, tiny_cache: Path, opposite: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, err = command(
        "traits", "compare", SCENARIOS, opposite, "--model", tiny_directory, "--out", out, "--json"
    )
    assert code == 0, err
    result = json.loads(printed)
    assert json.loads((out / "comparison.json").read_text()) == result
    (pair,) = result["pairs"]
    assert pair["traits"] == ["loudness", "whisper"]
    assert pair["declared_related"]
    assert pair["marked"] == {"reader": True, "steerer": True}
    for kind in ("reader", "steerer"):
        assert pair["cosines"][kind] == pytest.approx([-1] * len(result["checkpoints"]), abs=1e-3)
    own, foreign = result["cross_auroc"][0]
    assert foreign == pytest.approx(1 - own, abs=1e-3)
    assert result["traits"][0]["pairs"] == len(load_scenarios(SCENARIOS).splits.dev)
    assert Image.open(out / "comparison.png").size[0] > 500
    assert command("traits", "compare", SCENARIOS, opposite, "--out", out)[0] == 2, "nothing is overwritten"


def test_the_tables_name_both_traits_with_their_verdicts(
    command: Any, tiny_directory: Path, tiny_cache: Path, opposite: Path
) -> None:
    code, printed, _ = command("traits", "compare", SCENARIOS, opposite, "--model", tiny_directory)
    assert code == 0
    assert "loudness and whisper" in printed
    assert "-1.00*" in printed
    assert "related" in printed
    assert printed.count("unvalidated") >= 3


def test_vectors_of_some_checkpoints_only_are_compared_where_both_have_a_direction(
    tiny: Callable[..., LanguageModel], tiny_cache: Path, opposite: Path, tmp_path: Path
) -> None:
    references = [find_trait(str(path), Path()) for path in (SCENARIOS, opposite)]
    whole, other = vectors_for(tiny("llama"), references)
    there = torch.arange(len(whole.checkpoints)) == 2
    few = replace(other, readout=2, reader=other.reader.where(there[:, None], torch.nan))
    result = between.compare_traits(tiny("llama"), references, [whole, few])
    assert whole.readout != 2
    (pair,) = result["pairs"]
    assert [cosine is not None for cosine in pair["cosines"]["reader"]] == there.tolist()
    assert pair["strength"]["reader"] == pytest.approx(1, abs=1e-3)
    json.dumps(result, allow_nan=False)
    print_comparison(Console(file=io.StringIO()), result)
    save_picture(result, tmp_path / "comparison.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SCENARIOS], "name at least two different traits"),
        ([SCENARIOS, SCENARIOS], "name at least two different traits"),
        ([SCENARIOS, "sycophancy", "--split", "train"], "use dev or test"),
    ],
)
def test_wrong_requests_are_refused(arguments: list[Any], message: str, command: Any) -> None:
    code, _, err = command("traits", "compare", *arguments)
    assert code == 2
    assert message in err


def test_the_sealed_split_is_read_only_when_asked_for(
    tiny: Callable[..., LanguageModel], tiny_cache: Path, opposite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    pool = between.pool_pairs
    monkeypatch.setattr(
        between, "pool_pairs", lambda m, pairs, *rest: read.append(pairs[0].topic) or pool(m, pairs, *rest)
    )
    references = [find_trait(str(path), Path()) for path in (SCENARIOS, opposite)]
    vectors = vectors_for(tiny("llama"), references)
    splits = load_scenarios(SCENARIOS).splits
    between.compare_traits(tiny("llama"), references, vectors)
    assert read == [splits.dev[0].topic] * 2
    between.compare_traits(tiny("llama"), references, vectors, split="test")
    assert read[2:] == [splits.test[0].topic] * 2
