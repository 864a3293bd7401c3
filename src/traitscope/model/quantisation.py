"""Weights in 8 or 4 bits, kept by transformers' own quantisers: which kinds there are, and how weights are read back.

Only the linear maps inside the layers are quantised; embeddings, norms and the output head stay in the model's dtype.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from traitscope.errors import InputError
from traitscope.model.source import ModelSource, load_config

_DEVICES = ("cpu", "cuda")

# transformers imports these with any model, and they warn of kernels that are not there and of every cast they make.
for _noisy in ("bitsandbytes", "torchao", "torch.utils._pytree"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Quantiser:
    """One kind of ``--quantize``.

    Attributes:
        package: what transformers needs for it; the extra of traitscope has the same name.
        bits: that one weight takes, with its share of the scales.
        settings: what is computed. It is part of the fingerprint: a model under other settings is another model.
    """

    package: str
    bits: float
    settings: str


QUANTISERS = {
    "bnb-8bit": Quantiser("bitsandbytes", 8, "int8 weights by row, int8 inputs by token, no outliers apart"),
    "bnb-4bit": Quantiser("bitsandbytes", 4.5, "nf4 weights in blocks of 64"),
    "torchao-int8": Quantiser("torchao", 8, "int8 weights by row"),
}


def refuse_quantisation(source: ModelSource, device: torch.device) -> None:
    """Refuse what cannot be quantised as ``source`` asks, before any weight is read.

    Raises:
        InputError: unknown kind, missing package, a device that has no kernels for it, or a model whose weights are
            quantised already.
    """
    name = source.quantization
    if name is None:
        return
    refuse_unknown_kind(name)
    package = QUANTISERS[name].package
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"--quantize {name}: {package} is missing; install it with: pip install 'traitscope[{package}]'"
        )
    if device.type not in _DEVICES:
        raise InputError(f"--quantize {name}: {package} has no kernels for {device.type}; use --device cpu or cuda")
    if source.kind == "gguf":
        raise InputError(f"--quantize {name}: {source.name} is quantised already, and is read as it was rounded")
    if getattr(load_config(source), "quantization_config", None) is not None:
        raise InputError(f"--quantize {name}: {source.name} is quantised already; leave out --quantize")


def refuse_unknown_kind(name: str) -> None:
    """Refuse a name that is none of ``QUANTISERS``.

    Raises:
        InputError: says which there are.
    """
    if name not in QUANTISERS:
        raise InputError(f"--quantize {name!r} is unknown: use {', '.join(QUANTISERS)}")


def quantisation_config(name: str, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` takes as ``quantization_config`` for a kind; products are made in ``dtype``."""
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name == "bnb-8bit":
        # A threshold sets columns apart by the largest value in the batch: a row's scores would hang on its neighbours.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if name == "bnb-4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def settle_quantised_layers(module: nn.Module) -> None:
    """Make quantised layers compute every row by itself and in the model's dtype, and keep their weights readable.

    Raises:
        InputError: 8-bit layers that set outliers apart by batch.
    """
    for linear in module.modules():
        if hasattr(linear, "support_avx512bf16_for_cpu"):
            # Or the first pass repacks the weights for a kernel that rounds inputs to bfloat16, whatever the dtype.
            linear.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        threshold = getattr(getattr(linear, "state", None), "threshold", 0.0)
        if threshold:
            raise InputError(
                f"the model's 8-bit layers set outliers apart by batch (llm_int8_threshold={threshold}): scores "
                "would hang on the neighbours of a row; load it with llm_int8_threshold=0.0"
            )


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a plain linear map: its weight is ``[out, in]``, or ``[in, out]`` in a ``Conv1D``."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_quantised(linear: nn.Module) -> bool:
    """Whether a linear layer keeps something else than a plain matrix of numbers."""
    weight = getattr(linear, "weight", None)
    return type(weight) not in (nn.Parameter, torch.Tensor, type(None)) or _is_torchao(weight)


def plain_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's numbers; of one of torchao's, those that it stands for."""
    return tensor.dequantize() if _is_torchao(tensor) else tensor


def plain_weight(linear: nn.Module) -> torch.Tensor:
    """A linear layer's weight, in its own layout, as the numbers that it multiplies with.

    Raises:
        InputError: bitsandbytes has repacked it for its own kernel.
    """
    weight: Any = linear.weight
    if not is_quantised(linear):
        return weight
    if _is_torchao(weight):
        return plain_tensor(weight.data)
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    if getattr(getattr(weight, "quant_state", None), "packing_format_for_cpu", False):
        raise InputError("the model's 4-bit weights were repacked by a pass before it was loaded here; load it anew")
    return dequantize_bnb_weight(weight, getattr(linear, "state", None))


def rounds_inputs(linear: nn.Module) -> bool:
    """Whether a layer rounds what it reads as well, so that its output is not linear in it."""
    return type(linear).__name__ == "Linear8bitLt"


def quantised_size(module: nn.Module) -> tuple[int, int]:
    """How many weights of ``module`` are quantised, and the bytes that they take."""
    layers = [inner for inner in module.modules() if isinstance(inner, nn.Linear) and is_quantised(inner)]
    n_weights = sum(layer.in_features * layer.out_features for layer in layers)
    return n_weights, sum(tensor.nbytes for layer in layers for tensor in _stored(layer))


def n_weights(parameter: torch.Tensor) -> int:
    """How many weights a parameter stands for; two of them share a byte in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(torch.Size(state.shape).numel())


def _is_torchao(weight: Any) -> bool:
    return isinstance(weight, torch.Tensor) and type(weight.data).__module__.startswith("torchao.")


def _stored(linear: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that a quantised weight is kept in."""
    weight: Any = linear.weight
    if _is_torchao(weight):
        names, _ = weight.data.__tensor_flatten__()
        yield from (getattr(weight.data, name) for name in names)
        return
    yield weight.data
    scales = getattr(getattr(weight, "quant_state", None), "absmax", None)
    yield from (found for found in (scales, getattr(weight, "SCB", None)) if found is not None)
