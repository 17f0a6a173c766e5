"""A leaner way through vLLM's sampler for what reinforcement learning asks of every token: a reproducible draw and its log-probability.

As it stands vLLM 0.32 draws the noise of a seeded request from a generator of its own, in a Python loop over the batch, ranks the
sampled token within the vocabulary, and appends six Python objects per token. With a small model that is a tenth of the time. Here

* the noise is a function of (the request's seed, how many tokens it has): one vectorised hash, no state, so that a request that is
  preempted, or sent again after a death, draws the same tokens (CPU only: on a GPU vLLM's own kernels draw);
* for requests with `logprobs=0` and `flat_logprobs=True`, the container holds nothing but `logprobs`, one float a token.

Both keep the distribution: the same Gumbel-max kernel, the same log-softmax after temperature and truncation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.engine.logprobs import LogprobsProcessor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from models.seeds import noise_of

_plain_update = LogprobsProcessor._update_sample_logprobs


def install(llm: Any) -> None:
    """Make an in-process `vllm.LLM` sample this way; it must have been built with logprobs_mode="processed_logprobs"."""
    runner = llm.llm_engine.model_executor.driver_worker.model_runner
    sampler = runner.sampler
    plain_gather = sampler.gather_logprobs

    def gather(logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
        if num_logprobs:
            return plain_gather(logprobs, num_logprobs, token_ids)
        column = token_ids.unsqueeze(-1)
        # ranks nobody reads
        return LogprobsTensors(column.to(torch.int32), logprobs.gather(-1, column), torch.zeros_like(token_ids))

    sampler.gather_logprobs = gather
    processor: Any = LogprobsProcessor
    processor._update_sample_logprobs = _update
    if not torch.cuda.is_available():
        sampler.topk_topp_sampler.forward = _Draw(runner)


def _update(self: LogprobsProcessor, lists: Any) -> None:
    if self.num_logprobs != 0 or not hasattr(self.logprobs, "start_indices"):
        _plain_update(self, lists)
        return
    for row in lists.logprobs:
        self.logprobs.logprobs.append(float(row[0]))  # type: ignore[union-attr]


class _Draw:
    """vLLM's `TopKTopPSampler.forward` on a CPU."""

    def __init__(self, runner: Any) -> None:
        self._runner = runner

    def __call__(
        self, logits_BV: Tensor, generators: dict[int, torch.Generator], k: Tensor | None, p: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits_BV = apply_top_k_top_p(logits_BV, k, p)
        logprobs_BV = logits_BV.log_softmax(dim=-1, dtype=torch.float32)
        rows = len(logits_BV)
        noise = (
            torch.randint(0, 2**62, (rows,), dtype=torch.long) if len(generators) < rows else torch.empty(rows).long()
        )
        if generators:
            at = np.fromiter(generators, np.int64, len(generators))
            seed = np.fromiter((g.initial_seed() for g in generators.values()), np.uint64, len(generators))
            length = self._runner.input_batch.num_tokens_no_spec[at]
            noise[torch.from_numpy(at)] = torch.from_numpy(noise_of(seed, length))
        return torch.ops._C.fused_gumbel_argmax(logits_BV.float(), noise), logprobs_BV
