"""Floating-point operations of a decoder, for charging every stage of a run in one currency.

Unit: one token forward costs 2 N + 4 L D t, with N the parameters that take part in a matrix product, L layers, D the
attention width (heads times head size) and t the tokens in view; a training token costs three forwards (Kaplan et al. 2020,
arXiv 2001.08361, section 2.1, with the attention term kept).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FlopModel:
    """parameters: N without the embedding lookup (a tied or untied lm_head counts once). layers: L. width: D."""

    parameters: int
    layers: int
    width: int

    @classmethod
    def of(cls, config: Any, total_parameters: int) -> FlopModel:
        """From a Hugging Face config; total_parameters counts tied weights once."""
        heads = getattr(config, "num_attention_heads", 1)
        embedding = 0 if getattr(config, "tie_word_embeddings", False) else config.vocab_size * config.hidden_size
        return cls(total_parameters - embedding, config.num_hidden_layers, heads * head_size(config))

    def sequence(self, length: int, start: int = 0) -> float:
        """One forward over positions start..length-1 of a sequence, earlier ones cached."""
        n = length - start
        context = (start + length + 1) / 2 * n
        return 2.0 * self.parameters * n + 4.0 * self.layers * self.width * context

    def forward(self, lengths: Iterable[int]) -> float:
        return sum(self.sequence(length) for length in lengths)

    def training(self, lengths: Iterable[int]) -> float:
        """Forward and backward."""
        return 3.0 * self.forward(lengths)


def head_size(config: Any) -> int:
    """Of one attention head of a Hugging Face config."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // getattr(config, "num_attention_heads", 1))
