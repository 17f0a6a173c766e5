"""TokenSampler: a Ray actor around vLLM's in-process engine.

Token ids in, token ids and log-probabilities out. How requests reach the engine's thread, and weights while others are in flight, is
`actors.serving`'s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from actors.serving import Call, Serving
from actors.types import Prefix, Sample, SamplingParams
from models.flops import head_size
from models.trace import Kind

THREAD_POOL = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "3000"}
"""How idle arithmetic threads wait: a few microseconds in a loop, then asleep. Always asleep costs a process of two threads a third of
its speed on a virtual machine; GNU OpenMP's own 300,000 rounds make two such processes on two cores five times slower."""


def sampler_environment(threads: int) -> dict[str, str]:
    """Environment variables that a sampler's process needs before vLLM is imported."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        # otherwise the first request waits half a minute while torch compiles a log-prob kernel (and needs a C++ compiler)
        "TORCH_COMPILE_DISABLE": "1",
        "OMP_NUM_THREADS": str(threads),
        **THREAD_POOL,
        "TOKENIZERS_PARALLELISM": "false",
    }


class TokenSampler(Serving):
    """See the module's docstring. Build it with `ray.remote(TokenSampler).options(...)`, or directly in a test.

    path: model folder. dtype: "float32" or "bfloat16". max_length: prompt and answer together. stop_ids: ids that end a
    sequence. memory_mb: key/value cache on CPU; None sizes it for 256 sequences of half length, at most 4 GB.
    armed: whether the folder's weights are the current ones (False for the run's samplers, which wait for the learner).
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        max_length: int = 512,
        stop_ids: Sequence[int] = (),
        memory_mb: int | None = None,
        gpu_memory_utilization: float = 0.4,
        trust_remote_code: bool = False,
        armed: bool = False,
    ) -> None:
        import torch
        from vllm import LLM

        from actors import vllm_kernels, vllm_sampling, vllm_weights

        vllm_weights.register()
        self._weights = vllm_weights
        self.max_length = max_length
        self.stop_ids = list(stop_ids)
        on_gpu = torch.cuda.is_available()
        device: dict[str, Any]
        if on_gpu:
            device = {"gpu_memory_utilization": gpu_memory_utilization, "enable_sleep_mode": True}
        else:
            # eager: compilation costs 10-20 s of start and pays only at small batch on CPU
            device = {
                "enforce_eager": True,
                "block_size": 32,
                "kv_cache_memory_bytes": _cache_bytes(path, max_length, memory_mb),
            }
        self.llm = LLM(
            path,
            dtype=cast(Any, dtype),
            max_model_len=max_length,
            max_num_seqs=256,
            max_num_batched_tokens=max(8192, max_length),
            # log-probabilities of the distribution that was sampled from: temperature and truncation applied
            logprobs_mode="processed_logprobs",
            skip_tokenizer_init=True,
            disable_log_stats=True,
            trust_remote_code=trust_remote_code,
            weight_transfer_config={"backend": vllm_weights.BACKEND},
            **device,
            **vllm_kernels.install(),
        )
        self.llm.init_weight_transfer_engine({"init_info": {}})
        vllm_sampling.install(self.llm)
        self.engine = self.llm.llm_engine
        super().__init__(armed)

    # ---- the actor's interface ------------------------------------------------------------------------------------------

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        """Continue every prefix once. Seeds are the prefixes' own. Raises ValueError naming a prefix that is too long."""
        self._check_armed()
        for prefix in prefixes:
            if (prefix.kind == Kind.LATENT).any():
                raise ValueError("a token sampler cannot continue a prefix with latent positions; use a latent thinker")
            if len(prefix.token) >= self.max_length:
                raise ValueError(
                    f"the prompt of {prefix.group or 'a task'} has {len(prefix.token)} tokens but model.max_length is "
                    f"{self.max_length}; raise model.max_length or shorten the prompt"
                )
        return await self._submit(len(prefixes), lambda call: self._add_samples(call, prefixes, params))

    async def score(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32[T] log-probability of every given token under temperature 1; NaN at the first position."""
        self._check_armed()
        return await self._submit(len(rows), lambda call: self._add_scores(call, rows))

    async def sleep(self, level: int = 1) -> None:
        """Give the GPU's memory back while the learner works (colocated runs); needs an idle engine. No effect on CPU."""
        await self._do(lambda: self.llm.sleep(level) if _has_gpu() else None)

    async def wake(self) -> None:
        await self._do(lambda: self.llm.wake_up() if _has_gpu() else None)

    # ---- the engine -------------------------------------------------------------------------------------------------------

    def _working(self) -> bool:
        return self.engine.has_unfinished_requests()

    def _step(self) -> list[tuple[str, Any]]:
        return [(output.request_id, output) for output in self.engine.step() if output.finished]

    def _abort(self, names: list[str]) -> None:
        self.engine.abort_request(names)

    def _apply_weights(self, arrays: dict[str, np.ndarray], version: int) -> None:
        self._weights.update(self.llm, arrays, version)

    def _add_samples(self, call: Call, prefixes: Sequence[Prefix], params: SamplingParams) -> None:
        from vllm import SamplingParams as EngineParams
        from vllm.sampling_params import RequestOutputKind

        for i, prefix in enumerate(prefixes):
            engine_params = EngineParams(
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k or -1,
                max_tokens=min(params.max_tokens, self.max_length - len(prefix.token)),
                seed=prefix.seed,
                stop_token_ids=[*self.stop_ids, *params.stop_ids],
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            call.out[i] = lambda output: self._sample_of(output, call)
            self._add(call, i, prefix.token, engine_params)

    def _add_scores(self, call: Call, rows: Sequence[np.ndarray]) -> None:
        from vllm import SamplingParams as EngineParams
        from vllm.sampling_params import RequestOutputKind

        params = EngineParams(
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        for i, row in enumerate(rows):
            call.out[i] = lambda output, row=row: _given_logprobs(output.prompt_logprobs, row)
            self._add(call, i, row, params)

    def _add(self, call: Call, at: int, token: np.ndarray, params: Any) -> None:
        name = self._enter(call, at)
        self.engine.add_request(name, {"prompt_token_ids": token.tolist()}, params)
        self._calls[name] = call

    def _sample_of(self, output: Any, call: Call) -> Sample:
        completion = output.outputs[0]
        token = np.asarray(completion.token_ids, np.int32)
        self._stats["tokens"] += len(token)
        version = np.full(len(token), self.version, np.int32)
        for span in completion.weight_versions or []:
            version[span.start : span.end] = int(span.version) if span.version.lstrip("-").isdigit() else 0
        return Sample(
            token=token,
            logprob=np.asarray(completion.logprobs.logprobs, np.float32),
            version=version,
            latent=np.zeros(len(token), bool),
            finish="length" if completion.finish_reason == "length" else "stop",
            seconds=time.perf_counter() - call.started,
        )


def _given_logprobs(flat: Any, token: np.ndarray) -> np.ndarray:
    """float32[n]: from vLLM's flat log-probabilities, the entry of the given token at each position."""
    if flat is None:
        raise RuntimeError("vLLM returned no log-probabilities")
    out = np.full(len(token), np.nan, np.float32)
    starts, ends = flat.start_indices, flat.end_indices
    for t, wanted in enumerate(token.tolist()):
        for j in range(starts[t], ends[t]):
            if flat.token_ids[j] == wanted:
                out[t] = flat.logprobs[j]
                break
    return out


CPU_HEADS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of attention heads that vLLM's CPU kernels know (`get_supported_head_sizes` of its CPU attention, 0.32)."""


def _cache_bytes(path: str, max_length: int, memory_mb: int | None) -> int:
    if memory_mb is not None:
        return memory_mb * 2**20
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * heads * head_size(config) * 4
    return int(min(max(per_token * max_length * 128, 64 * 2**20), 4 * 2**30))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
