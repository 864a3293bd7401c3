"""Bugs caught here: the wrong head, token or neuron named; z that does not add up; a question that is not answered in
one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nights import run_suite
from random_traits import random_vectors
from tiny_models import tiny_model, tiny_tokenizer
from traitscope.attribution import neutral
from traitscope.attribution.closure import check_closure
from traitscope.attribution.explanation import Explanation, explain
from traitscope.attribution.tree import Term
from traitscope.captures.schema import FORMAT_VERSION
from traitscope.model.capture import ReaderBank
from traitscope.model.loading import LanguageModel, load_model
from traitscope.suite.file import BASE_TEMPLATE
from traitscope.suite.rendering import PromptStyle
from traitscope.traits.calibration import calibrate
from traitscope.traits.scenarios import NeutralPrompts
from traitscope.traits.vectors import TraitVectors, save_vectors

LAYER, HEAD, NEURON, R = 1, 2, 17, "resid_post.1"
THINGS = ("moss", "rivers", "stones", "clouds", "rain", "the sun", "trees", "snow")
NEUTRAL = NeutralPrompts(name="few", prompts=[f"tell me of {thing}" for thing in THINGS])
D_HEAD, D_MODEL = 8, 32


def _plant(module: Any) -> torch.Tensor:
    """Let head 2 of layer 1 copy a direction wherever it finds a Q, and neuron 17 add to it; returns the direction."""
    seen, always, written = torch.linalg.qr(torch.randn(D_MODEL, 3))[0].T
    q_token = tiny_tokenizer()("Q", add_special_tokens=False)["input_ids"][0]
    attention, mlp = module.model.layers[LAYER].self_attn, module.model.layers[LAYER].mlp
    slow = D_HEAD // 2 - 1  # the pair of dimensions that the rotary embedding turns least
    with torch.no_grad():
        module.model.embed_tokens.weight.mul_(0.1).add_(3 * always)
        module.model.embed_tokens.weight[q_token] += 3 * seen
        for layer in module.model.layers:
            layer.self_attn.o_proj.weight.mul_(0.1)
            layer.mlp.down_proj.weight.mul_(0.1)
        query = attention.q_proj.weight[HEAD * D_HEAD : (HEAD + 1) * D_HEAD]
        key = attention.k_proj.weight[D_HEAD : 2 * D_HEAD]
        value = attention.v_proj.weight[D_HEAD : 2 * D_HEAD]
        for weight, direction in ((query, always), (key, seen)):
            weight.zero_()
            weight[slow] = 4 * direction
        value.zero_()
        value[0] = seen
        attention.o_proj.weight[:, HEAD * D_HEAD] = 2 * written
        mlp.gate_proj.weight[NEURON] = mlp.up_proj.weight[NEURON] = written
        mlp.down_proj.weight[:, NEURON] = written
    return written


def _planted_vectors(model: LanguageModel, direction: torch.Tensor) -> TraitVectors:
    made = random_vectors(model, 0)
    reader = direction.repeat(len(made.checkpoints), 1)
    readout = made.checkpoints.index(R)
    bank = ReaderBank(("planted",), reader[None], (readout,))
    style = PromptStyle(system=None, template={}, base_template=BASE_TEMPLATE)
    calibration = calibrate(model, bank, NEUTRAL, style)[0]
    return TraitVectors(
        trait="planted",
        description="",
        poles=("Q", "no Q"),
        checkpoints=made.checkpoints,
        readout=readout,
        reader=reader,
        steerer=reader.clone(),
        calibration=calibration,
        origin=made.origin,
    )


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel]:
    """A finished run on the planted model, and the model."""
    folder = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAITSCOPE_CACHE", str(folder / "cache"))
        torch.manual_seed(3)
        module = tiny_model("llama")
        direction = _plant(module)
        module.save_pretrained(folder / "model")
        tiny_tokenizer().save_pretrained(folder / "model")
        model = load_model(str(folder / "model"), device="cpu", dtype="float32")
        save_vectors(_planted_vectors(model, direction), folder / "planted.safetensors")
        suite = {
            "name": "planted",
            "model": str(folder / "model"),
            "traits": ["planted.safetensors"],
            "generation": {"max_new_tokens": 6},
            "experiments": [{"name": "asked", "prompts": ["the river Q runs", "moss and stones"]}],
        }
        (folder / "suite.yaml").write_text(json.dumps(suite))
        return run_suite(folder / "suite.yaml", folder / "runs"), model


@pytest.fixture(autouse=True)
def _few_neutral_replies(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(neutral, "load_neutral", lambda: NEUTRAL)


def _named(explanation: Explanation, kind: str) -> Term:
    return next(term for term in explanation.tree.terms if term.detail.get("kind") == kind)


def test_the_planted_head_its_token_and_the_planted_neuron_come_first(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    found = explain(run_dir, "asked/1", "planted", -1, model=model)
    blocks = [term for term in found.tree.terms if "kind" in term.detail]
    assert {(b.detail["layer"], b.detail["kind"]) for b in blocks[:2]} == {(LAYER, "attention"), (LAYER, "mlp")}
    head = _named(found, "attention").parts[0]
    assert found.tree.heads[0].detail == head.detail == {"layer": LAYER, "head": HEAD}
    assert found.tree.neurons[0].detail["neuron"] == NEURON
    assert head.detail["head"] == HEAD
    assert (head.parts[0].detail["token"], head.parts[0].detail["weight"] > 0.5) == ("Q", True)
    assert head.parts[0].z / head.z == pytest.approx(1, abs=0.05)
    assert _named(found, "mlp").parts[0].detail["neuron"] == NEURON
    assert found.z > 5 * abs(explain(run_dir, "asked/2", "planted", -1, model=model).z)


def test_every_branch_adds_up(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    for position in (0, 12, -1):
        found = explain(run_dir, "asked/1", "planted", position, model=model)
        assert sum(term.raw for term in found.tree.terms) == pytest.approx(found.score, rel=1e-9)
        assert sum(term.z for term in found.tree.terms) == pytest.approx(found.z, abs=2e-4)
        assert found.z == pytest.approx(found.stored_z, abs=2e-3 * (1 + abs(found.z)))
        for block in (term for term in found.tree.terms if term.parts):
            assert sum(part.raw for part in block.parts) == pytest.approx(block.raw, rel=1e-9)
            assert sum(part.z for part in block.parts) == pytest.approx(block.z, abs=1e-5)
            for part in (part for part in block.parts if part.parts):
                assert sum(source.raw for source in part.parts) == pytest.approx(part.raw, rel=1e-9)


def test_rounding_rows_are_tiny(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    found = explain(run_dir, "asked/1", "planted", -1, model=model)
    branches = [found.tree.terms, *(term.parts for term in found.tree.terms if term.parts)]
    for branch in branches:
        (rounding,) = [term for term in branch if term.label == "rounding"]
        assert abs(rounding.raw) < 1e-5 * sum(abs(term.raw) for term in branch)


def test_the_loudest_neurons_are_those_with_the_largest_activations(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    loudest = _named(explain(run_dir, "asked/1", "planted", -1, model=model), "mlp").detail["largest_activations"]
    sizes = [abs(neuron["activation"]) for neuron in loudest]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 5


def test_top_is_the_content_token_with_the_largest_z(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    top = explain(run_dir, "asked/1", "planted", model=model)
    others = [explain(run_dir, "asked/1", "planted", p, model=model) for p in range(-6, 0)]
    assert top.phase == "response"
    assert abs(top.z) == pytest.approx(max(abs(other.z) for other in others), rel=2**-11)


def test_sums_close_for_every_token_and_trait(planted: tuple[Path, LanguageModel]) -> None:
    run_dir, model = planted
    closure = check_closure(run_dir, model=model)
    assert closure.closed
    assert {gap.kind for gap in closure.gaps} == {"score", "attention", "mlp"}
    tokens = sum(len(explain(run_dir, f"asked/{n}", "planted", 0, model=model).after) for n in (1, 2))
    n_scores = next(gap.n_sums for gap in closure.gaps if gap.kind == "score")
    assert 0 < tokens <= n_scores
    assert next(gap.n_sums for gap in closure.gaps if gap.kind == "mlp") == 3 * n_scores


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--generation", "nobody", "--trait", "planted"), "--generation nobody: not in"),
        (("--generation", "asked/1", "--trait", "plantd"), "--trait plantd: not in this run; did you mean planted"),
        (("--generation", "asked/1", "--trait", "planted", "--position", "999"), "--position 999: the generation has"),
        (
            ("--generation", "asked/1", "--trait", "planted", "--top", "--position", "1"),
            "--top or --position, not both",
        ),
        (("--generation", "", "--trait", "planted"), "--generation: is empty"),
        (("--closure", "--trait", "planted"), "--closure checks every trait and token"),
        (("--trait", "planted"), "give one --generation and one --trait"),
    ],
)
def test_a_wrong_question_is_one_line(
    planted: tuple[Path, LanguageModel], command: Any, arguments: tuple[str, ...], problem: str
) -> None:
    code, out, err = command("explain", planted[0], *arguments)
    assert (code, out) == (2, "")
    assert problem in err
    assert err.count("\n") == 1


def _broken(run_dir: Path, folder: Path, name: str, content: bytes | None) -> Path:
    copy = shutil.copytree(run_dir, folder / "run")
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    return copy


@pytest.mark.parametrize(
    ("name", "content", "problem", "exit_code"),
    [
        ("plan.json", b"[]", "plan.json is damaged", 2),
        (
            "plan.json",
            f'{{"format_version": {FORMAT_VERSION}}}'.encode(),
            "plan.json is damaged: it lacks model, device",
            2,
        ),
        ("vectors/planted.safetensors", b"zz", "missing or damaged", 2),
        ("vectors/planted.safetensors", None, "missing or damaged", 2),
        ("suite.yaml", b"name: other", "suite.yaml was changed since the run began", 2),
        ("shards/0000.scores.parquet", b"zz", "0000.scores.parquet has 2 bytes instead of", 1),
        ("shards/0000.done.json", None, "is not captured yet; go on with: traitscope run --resume", 2),
    ],
)
def test_a_damaged_run_is_one_line(
    planted: tuple[Path, LanguageModel],
    tmp_path: Path,
    command: Any,
    name: str,
    content: bytes | None,
    problem: str,
    exit_code: int,
) -> None:
    run_dir = _broken(planted[0], tmp_path, name, content)
    code, out, err = command("explain", run_dir, "--generation", "asked/1", "--trait", "planted")
    assert (code, out) == (exit_code, "")
    assert problem in err
    assert err.count("\n") == 1


def test_a_model_that_has_vanished_is_one_line(planted: tuple[Path, LanguageModel], command: Any) -> None:
    directory = Path(json.loads((planted[0] / "plan.json").read_text())["model"]["location"])
    elsewhere = directory.rename(directory.with_name("elsewhere"))
    try:
        code, _, err = command("explain", planted[0], "--generation", "asked/1", "--trait", "planted")
    finally:
        elsewhere.rename(directory)
    assert code == 2
    assert "is not there any more" in err


def test_the_command_prints_the_tree_and_the_same_as_json(planted: tuple[Path, LanguageModel], command: Any) -> None:
    asked = ("explain", planted[0], "--generation", "asked/1", "--trait", "planted", "--position", "-1")
    code, out, _ = command(*asked)
    assert code == 0
    assert out.index(f"head {HEAD}") < out.index("reads 'Q'")
    assert f"neuron {NEURON}" in out
    code, out, _ = command(*asked, "--json")
    described = json.loads(out)
    assert (code, described["trait"], described["readout"]) == (0, "planted", R)
    code, out, _ = command("explain", planted[0], "--closure")
    assert (code, "all sums close" in out) == (0, True)
