"""What a model that is not here would need, from its configuration alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from traitscope.errors import InputError
from traitscope.model.facts import facts_of_config
from traitscope.model.loading import DTYPES
from traitscope.model.quantisation import refuse_unknown_kind
from traitscope.model.source import check_reachable, find_source, load_config, load_config_file

_TOKENS = (128, 512, 2048)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)


def describe_sizes(
    model: str,
    memory: str,
    dtype: str,
    *,
    quantize: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Parameters, weights, cache per row and the largest batch beside the weights in ``memory``. Bytes.

    Args:
        model: a hub id, a directory, or a configuration file (.json); no weights and no tokenizer are read.
        memory: such as ``24GB`` or ``16GiB``.
        dtype: ``auto`` is the configuration's own, else bfloat16.
        quantize: a kind of ``--quantize``; its package need not be here.

    Raises:
        InputError: no such configuration, unknown dtype or kind, or a size that cannot be read.
    """
    if quantize is not None:
        refuse_unknown_kind(quantize)
    there = memory_bytes(memory)
    config = _config(model, revision, trust_remote_code)
    chosen = _dtype(dtype, config)
    facts = facts_of_config(config, quantize)
    left = there - facts.weight_bytes(chosen.itemsize)
    return {
        "model": model,
        "parameters": facts.n_parameters,
        "layers": facts.n_layers,
        "d_model": facts.d_model,
        "dtype": str(chosen).removeprefix("torch."),
        "quantization": quantize,
        "weight_bytes": facts.weight_bytes(chosen.itemsize),
        "cache_bytes_per_token": facts.cache_bytes_per_token(chosen.itemsize),
        "memory_bytes": there,
        "rows": [
            {
                "tokens": n_tokens,
                "cache_bytes": n_tokens * facts.cache_bytes_per_token(chosen.itemsize),
                "largest_batch": max(0, left // facts.bytes_per_row(n_tokens, chosen.itemsize)),
            }
            for n_tokens in _TOKENS
        ],
    }


def memory_bytes(text: str) -> int:
    """``24GB`` (10⁹) or ``24GiB`` (2³⁰) as bytes.

    Raises:
        InputError: not a size.
    """
    matched = _SIZE.fullmatch(text.strip())
    if matched is None or float(matched[1]) <= 0:
        raise InputError(f"--memory {text!r}: use a size such as 24GB or 16GiB")
    unit = _UNITS[matched[2].lower()]
    binary = 1024 ** list(_UNITS.values()).index(unit)
    return int(float(matched[1]) * (binary if matched[3] else unit))


def _config(model: str, revision: str | None, trust_remote_code: bool) -> Any:
    if Path(model).expanduser().suffix == ".json":
        return load_config_file(Path(model).expanduser())
    source = find_source(model, revision=revision, trust_remote_code=trust_remote_code)
    check_reachable(source)
    return load_config(source)


def _dtype(name: str, config: Any) -> torch.dtype:
    if name == "auto":
        return getattr(config, "dtype", None) or torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]
