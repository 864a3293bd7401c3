"""Loading one model, once, and everything that the rest of traitscope asks of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from traitscope.errors import InputError
from traitscope.model.anatomy import Anatomy, find_anatomy
from traitscope.model.blocks import LayerBlocks, find_blocks
from traitscope.model.embedded import EMBEDDED_NAME, embedded_weights_directory
from traitscope.model.fingerprint import Fingerprint, fingerprint_of_module, fingerprint_of_source
from traitscope.model.meter import ForwardMeter
from traitscope.model.packing import PackedLinears
from traitscope.model.quantisation import (
    quantisation_config,
    quantised_size,
    refuse_quantisation,
    settle_quantised_layers,
)
from traitscope.model.source import (
    ModelSource,
    check_reachable,
    context_length,
    find_source,
    load_config,
    load_tokenizer,
    readable_errors,
    without_progress_bars,
)
from traitscope.model.static_step import StaticSteps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class LanguageModel:
    """A loaded model whose residual stream was found and checked.

    Attributes:
        name: what the user asked for.
        module: the transformers model, in evaluation mode.
        context_length: how many tokens it can read, or None if unlimited.
        eos_token_ids: each of them ends a response.
        linears: its linear layers packed for decoding.
        static_steps: its decode step compiled, on a CUDA device.
        meter: counts and times every ``forward``.
    """

    name: str
    module: Any
    tokenizer: Any
    anatomy: Anatomy
    fingerprint: Fingerprint
    context_length: int | None
    eos_token_ids: frozenset[int]
    linears: PackedLinears = field(repr=False)
    static_steps: StaticSteps = field(repr=False)
    meter: ForwardMeter = field(default_factory=ForwardMeter, repr=False)
    _accepted: frozenset[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._accepted = frozenset(inspect.signature(self.module.forward).parameters)

    @property
    def device(self) -> torch.device:
        return self.module.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point())

    @property
    def n_layers(self) -> int:
        return len(self.anatomy.layers)

    @cached_property
    def blocks(self) -> tuple[LayerBlocks, ...]:
        """How the blocks of each layer write; found by one small pass when first asked for."""
        return find_blocks(self.module, self.anatomy)

    def forward(self, **inputs: Any) -> Any:
        """One forward pass with those of ``inputs`` that this architecture's ``forward`` knows."""
        with self.meter.measuring(inputs["input_ids"], inputs.get("logits_to_keep", 0)):
            return self.module(**{name: value for name, value in inputs.items() if name in self._accepted})

    def __repr__(self) -> str:
        return (
            f"LanguageModel({self.name}: {self.n_layers} layers, d_model {self.anatomy.d_model}, "
            f"{len(self.anatomy.checkpoints)} checkpoints, {self.dtype} on {self.device})"
        )


def load_model(
    model: str | nn.Module = EMBEDDED_NAME,
    tokenizer: Any = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Load a model and check that its residual stream can be read.

    Args:
        model: ``"smollm2-135m"`` (embedded), a Hugging Face id, a directory, a GGUF file, or a transformers
            model in memory, which then needs its ``tokenizer`` and stays where and what it is.
        device: ``auto`` takes cuda, then mps, then cpu.
        dtype: ``auto`` is the checkpoint's own on an accelerator and float32 on a CPU.
        quantize: ``bnb-8bit``, ``bnb-4bit`` or ``torchao-int8``; it makes another model of it, with its own vectors.

    Raises:
        InputError: the model is not there, the device is not available, the model cannot be quantised so, or the
            architecture keeps no residual stream that can be read.
    """
    if isinstance(model, str):
        source = find_source(model, revision=revision, trust_remote_code=trust_remote_code, quantization=quantize)
        return load_source(source, device=device, dtype=dtype)
    if quantize is not None:
        raise InputError("load_model: a model in memory stays what it is; leave out quantize")
    if tokenizer is None:
        raise InputError("load_model: a model in memory needs its tokenizer: load_model(model, tokenizer)")
    return _wrapped(type(model).__name__, model.eval(), tokenizer, fingerprint_of_module(model, tokenizer))


def load_source(source: ModelSource, *, device: str = "auto", dtype: str = "auto") -> LanguageModel:
    """``load_model`` for a source that is known already."""
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    check_reachable(source)
    refuse_quantisation(source, chosen_device)
    tokenizer = load_tokenizer(source)
    module = _load_weights(source, chosen_device, chosen_dtype)
    fingerprint = fingerprint_of_source(source, tokenizer) or fingerprint_of_module(module, tokenizer)
    return _wrapped(source.name, module, tokenizer, fingerprint)


def choose_device(name: str) -> torch.device:
    """The device that ``name`` means here.

    Raises:
        InputError: unknown, or not available on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is unknown: use auto, cpu, cuda, cuda:N or mps") from None
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }.get(device.type)
    if available is None:
        raise InputError(f"device {name!r} is not supported: use auto, cpu, cuda, cuda:N or mps")
    if not available:
        raise InputError(f"device {name!r} is not available on this machine: use auto or cpu")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """The dtype that ``name`` means on ``device``; None stands for the checkpoint's own.

    Raises:
        InputError: unknown name.
    """
    if name == "auto":
        return torch.float32 if device.type == "cpu" else None
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _load_weights(source: ModelSource, device: torch.device, dtype: torch.dtype | None) -> Any:
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"dtype": "auto" if dtype is None else dtype, **source.pretrained_arguments()}
    with readable_errors(source, "weights"), without_progress_bars():
        location = str(embedded_weights_directory()) if source.kind == "embedded" else source.location
        if source.quantization is not None:
            known_dtype = dtype or load_config(source).dtype or torch.float32
            arguments |= {
                "quantization_config": quantisation_config(source.quantization, known_dtype),
                "device_map": {"": device},
            }
        module = AutoModelForCausalLM.from_pretrained(location, **arguments)
    if source.quantization is None:
        return module.eval().to(device)
    if not quantised_size(module)[0]:
        raise InputError(f"--quantize {source.quantization}: it knows none of the layers of {type(module).__name__}")
    return module.eval()


def _wrapped(name: str, module: Any, tokenizer: Any, fingerprint: Fingerprint) -> LanguageModel:
    if "past_key_values" not in inspect.signature(module.forward).parameters:
        raise InputError(f"model {name}: {type(module).__name__} has no KV cache; it is not supported")
    settle_quantised_layers(module)
    return LanguageModel(
        name=name,
        module=module,
        tokenizer=tokenizer,
        anatomy=find_anatomy(module),
        fingerprint=fingerprint,
        context_length=context_length(module.config),
        eos_token_ids=_eos_token_ids(module, tokenizer),
        linears=PackedLinears(module),
        static_steps=StaticSteps(wanted=_is_on_one_cuda_device(module)),
    )


def _is_on_one_cuda_device(module: Any) -> bool:
    devices = {parameter.device for parameter in module.parameters()}
    return len(devices) == 1 and devices.pop().type == "cuda"


def _eos_token_ids(module: Any, tokenizer: Any) -> frozenset[int]:
    """All end-of-sequence ids of the generation config; else the configuration's; else the tokenizer's."""
    for owner in (getattr(module, "generation_config", None), module.config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        if ids is not None:
            return frozenset(ids if isinstance(ids, (list, tuple)) else [ids])
    return frozenset()
