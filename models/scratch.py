"""Small models from nothing: random weights and a tokenizer of whole words, written as Hugging Face folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PAD, END, UNKNOWN, LATENT = "<pad>", "<end>", "<unk>", "<latent>"
FAMILIES = ("llama", "qwen3", "gpt2")


def write_model(
    folder: Path,
    words: Sequence[str],
    *,
    family: str = "llama",
    layers: int = 2,
    width: int = 64,
    heads: int = 4,
    length: int = 512,
    seed: int = 0,
) -> Path:
    """A decoder that reads and writes `words`, separated by blanks. width: of the hidden states; the feed-forward layers have four
    times as much (two and two thirds in llama and qwen3, whose three matrices then cost the same). length: longest sequence."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    tokenizer = _tokenizer(words)
    same: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": 1, "bos_token_id": None, "pad_token_id": 0}
    # transformers' 0.02 suits widths near 1000; a narrow model would begin as a constant
    same["initializer_range"] = 0.6 / width**0.5
    if family == "gpt2":
        same |= {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": length}
        same |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        same |= {"activation_function": "gelu_pytorch_tanh"}  # GPT-2's own function in one kernel
    else:
        inner = -(-8 * width // 3 // 8) * 8
        same |= {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
        }
        same |= {"intermediate_size": inner, "max_position_embeddings": length, "tie_word_embeddings": True}
        same |= {"head_dim": width // heads} if family == "qwen3" else {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**same), dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=1, pad_token_id=0)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    publish(aside, folder)
    return folder


def publish(aside: Path, folder: Path) -> None:
    """Rename a finished folder into its place; another process may have been faster."""
    try:
        os.rename(aside, folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        if not folder.is_dir():
            raise


def _tokenizer(words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    listed = [PAD, END, UNKNOWN, LATENT, *dict.fromkeys(words)]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=END, pad_token=PAD, unk_token=UNKNOWN, additional_special_tokens=[LATENT]
    )
