"""Tiny random models, one for each architecture that the tests run on, and a byte-level tokenizer for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 260
SCENARIOS = Path(__file__).parent / "data" / "loudness.yaml"
"""A scenario set that a byte-level model can be fitted on."""
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GATED = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}


def _llama() -> Any:
    return tf.LlamaConfig(**_GATED)


def _qwen2() -> Any:
    return tf.Qwen2Config(**{k: v for k, v in _GATED.items() if k != "head_dim"})


def _qwen3() -> Any:
    return tf.Qwen3Config(**_GATED)


def _gemma2() -> Any:
    return tf.Gemma2Config(**_GATED, sliding_window=8, query_pre_attn_scalar=8)


def _gemma3() -> Any:
    return tf.Gemma3TextConfig(**_GATED, sliding_window=8, query_pre_attn_scalar=8)


def _mistral() -> Any:
    return tf.MistralConfig(**_GATED, sliding_window=8)


def _phi3() -> Any:
    return tf.Phi3Config(**{k: v for k, v in _GATED.items() if k != "head_dim"})


def _gpt2() -> Any:
    return tf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=32,
        n_layer=3,
        n_head=4,
        n_positions=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def _gpt_neox() -> Any:
    return tf.GPTNeoXConfig(**_COMMON, intermediate_size=48, use_parallel_residual=True)


def _olmo2() -> Any:
    return tf.Olmo2Config(**{k: v for k, v in _GATED.items() if k != "head_dim"})


def _olmoe() -> Any:
    return tf.OlmoeConfig(**{k: v for k, v in _GATED.items() if k != "head_dim"}, num_experts=4, num_experts_per_tok=2)


def _granite() -> Any:
    return tf.GraniteConfig(
        **{k: v for k, v in _GATED.items() if k != "head_dim"},
        residual_multiplier=0.22,
        embedding_multiplier=6.0,
    )


def _bloom() -> Any:
    return tf.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )


def _opt() -> Any:
    return tf.OPTConfig(**_COMMON, ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=True)


def _gpt_oss() -> Any:
    """Attention sinks, every other layer with a sliding window, experts whose maps have biases."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 128}
    return tf.GptOssConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2, sliding_window=8, rope_parameters=rope)


def _phi() -> Any:
    """Parallel blocks that share one dropout module."""
    return tf.PhiConfig(**_COMMON, intermediate_size=48, num_key_value_heads=2)


CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "phi3": _phi3,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "granite": _granite,
    "bloom": _bloom,
    "opt": _opt,
    "gpt_oss": _gpt_oss,
    "phi": _phi,
}
PARALLEL = {"gpt_neox", "phi"}


def tiny_model(architecture: str, *, seed: int = 0) -> Any:
    """A random float32 model in evaluation mode, weights large enough that greedy choices are not ties."""
    torch.manual_seed(seed)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[architecture](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model.eval()


def tiny_biased_model(architecture: str) -> Any:
    """``tiny_model`` with biases, gains of norms and attention sinks off their initial zeros and ones."""
    model = tiny_model(architecture)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 or name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def tiny_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """One token a byte behind four special tokens: 260 in all."""
    special = ["<pad>", "<bos>", "<eos>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    tokenizer.chat_template = chat_template
    return tokenizer
