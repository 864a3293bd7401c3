"""What a model's configuration alone tells of its size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from traitscope.model.quantisation import QUANTISERS, is_linear, n_weights, quantised_size


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of a model, known without its weights."""

    n_parameters: int
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    vocab_size: int
    tied_head: bool
    n_neurons: int
    """Neurons of one layer that say something about one token: of all its chosen experts, or ``d_mlp``."""
    n_quantised: int = 0
    """How many of the parameters are kept in fewer bits than their dtype has."""
    quantised_bytes: int = 0

    def weight_bytes(self, itemsize: int) -> int:
        return (self.n_parameters - self.n_quantised) * itemsize + self.quantised_bytes

    def cache_bytes_per_token(self, itemsize: int) -> int:
        """Keys and values of all layers for one token of one row."""
        return 2 * self.n_layers * self.n_kv_heads * self.d_head * itemsize

    def forward_flops(self, n_tokens: int, n_logit_rows: int) -> int:
        """Two per weight of a matrix product: blocks for every token, the output head for rows of logits.

        Attention's own products are left out; so are embeddings, which are looked up.
        """
        head = self.vocab_size * self.d_model
        embeddings = head * (1 if self.tied_head else 2)
        return 2 * ((self.n_parameters - embeddings) * n_tokens + head * n_logit_rows)

    def open_layer_values(self, names: Iterable[str], n_tokens: int) -> int:
        """How many numbers the named tensors of one open layer hold."""
        per_token = {
            "q": self.n_heads * self.d_head,
            "k": self.n_kv_heads * self.d_head,
            "v": self.n_kv_heads * self.d_head,
            "pattern": self.n_heads * n_tokens,
            "head_out": self.n_heads * self.d_head,
            "neurons": self.n_neurons,
            "attn_out": self.d_model,
            "mlp_out": self.d_model,
        }
        return n_tokens * sum(per_token[name] for name in names)

    def bytes_per_row(self, n_tokens: int, itemsize: int, n_read: int | None = None) -> int:
        """Working memory of one row of a batch: cache, one block's activations of the ``n_read`` tokens that a
        prefill reads at once (all of them by default), logits with their float32 copies."""
        n_read = n_tokens if n_read is None else n_read
        cache = n_tokens * self.cache_bytes_per_token(itemsize)
        activations = n_read * (6 * self.d_model + 3 * self.d_mlp) * itemsize
        return cache + activations + 4 * 4 * self.vocab_size


def facts_of_config(config: Any, quantization: str | None = None) -> ModelFacts:
    """Sizes from a transformers configuration; parameters are counted on a model without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    facts = facts_of_module(module)
    if quantization is None:
        return facts
    head = module.get_output_embeddings()
    linears = [inner for inner in module.modules() if is_linear(inner) and inner is not head]
    n_quantised = sum(linear.weight.numel() for linear in linears)
    return replace(facts, n_quantised=n_quantised, quantised_bytes=int(n_quantised * QUANTISERS[quantization].bits / 8))


def facts_of_module(module: Any) -> ModelFacts:
    """Sizes of a model in memory."""
    config = module.config.get_text_config()
    n_heads = int(config.num_attention_heads)
    d_model = int(config.hidden_size)
    parameters = {id(parameter): n_weights(parameter) for parameter in module.parameters()}
    n_quantised, quantised_bytes = quantised_size(module)
    d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None) or 4 * d_model
    return ModelFacts(
        n_parameters=sum(parameters.values()),
        n_layers=int(config.num_hidden_layers),
        d_model=d_model,
        d_mlp=int(d_mlp),
        n_heads=n_heads,
        n_kv_heads=int(getattr(config, "num_key_value_heads", None) or n_heads),
        d_head=int(getattr(config, "head_dim", None) or d_model // n_heads),
        vocab_size=int(config.vocab_size),
        tied_head=bool(getattr(config, "tie_word_embeddings", True)),
        n_neurons=_n_neurons(config, int(d_mlp)),
        n_quantised=n_quantised,
        quantised_bytes=quantised_bytes,
    )


def _n_neurons(config: Any, d_mlp: int) -> int:
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        return d_mlp
    return int(chosen) * int(getattr(config, "moe_intermediate_size", None) or d_mlp)
