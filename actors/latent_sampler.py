"""LatentSampler: a Ray actor that thinks in latents and then speaks, in native torch, with TokenSampler's interface.

The engine is `models.decode.Decoder`; threads, weights between steps and restarts are `actors.serving.Serving`'s.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from actors.serving import Call, Serving
from actors.types import Prefix, Sample, SamplingParams
from models.decode import Decoder, Request
from models.forward import Distribution, score_rows
from models.loading import latent_id, load_role, load_tokenizer, put_weights


class LatentSampler(Serving):
    """Build it with `ray.remote(LatentSampler).options(...)`, or directly in a test.

    path: folder of a model with a thinker. dtype: "float32", "bfloat16" or "float64". max_length: prompt, latents and answer together.
    stop_ids: ids that end a sequence. rows: requests at work at once; more wait.
    """

    def __init__(
        self,
        path: str,
        *,
        dtype: str = "float32",
        max_length: int = 512,
        stop_ids: Sequence[int] = (),
        rows: int = 256,
        threads: int = 1,
        trust_remote_code: bool = False,
        armed: bool = False,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(threads)
        self.model = load_role(path, dtype=dtype, trust_remote_code=trust_remote_code).to(device).eval()
        if self.model.thinker is None:
            raise ValueError(f"the model {path} has no thinker; set model.thinker to let it think in latents")
        self.device = device
        self.max_length = max_length
        self.stop_ids = frozenset(stop_ids)
        self._decoder = Decoder(self.model, rows, latent_id(load_tokenizer(path, trust_remote_code)))
        super().__init__(armed)

    async def sample(self, prefixes: Sequence[Prefix], params: SamplingParams) -> list[Sample]:
        """Continue every prefix once: `params.latents` latent steps (the most, where stopping is sampled), then tokens."""
        self._check_armed()
        for prefix in prefixes:
            if len(prefix.token) + params.latents >= self.max_length:
                raise ValueError(
                    f"the prompt of {prefix.group or 'a task'} has {len(prefix.token)} positions and {params.latents} latent "
                    f"steps follow, but model.max_length is {self.max_length}; raise model.max_length or shorten the prompt"
                )
        return await self._submit(len(prefixes), lambda call: self._add_samples(call, prefixes, params))

    async def score(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32[T] log-probability of every given token under temperature 1; NaN at the first position."""
        self._check_armed()
        return await self._do(lambda: score_rows(self.model, rows, self.device))

    async def sleep(self, level: int = 1) -> None:
        """No memory is kept apart that could be given back: the buffers are small."""

    async def wake(self) -> None:
        """See `sleep`."""

    # ---- the engine -------------------------------------------------------------------------------------------------------

    def _working(self) -> bool:
        return self._decoder.busy

    def _step(self) -> list[tuple[str, Any]]:
        before = sum(r.latents + r.spoken for r in self._decoder.active)
        ended = self._decoder.step()
        after = sum(r.latents + r.spoken for r in [*self._decoder.active, *ended])
        self._stats["tokens"] += after - before
        return [(request.tag, request) for request in ended]

    def _abort(self, names: list[str]) -> None:
        self._decoder.drop(set(names))

    def _apply_weights(self, arrays: dict[str, np.ndarray], version: int) -> None:
        put_weights(self.model, arrays)
        self._decoder.renew(version)

    def _add_samples(self, call: Call, prefixes: Sequence[Prefix], params: SamplingParams) -> None:
        greedy = params.temperature == 0
        distribution = Distribution(1.0 if greedy else params.temperature, params.top_p, params.top_k)
        for i, prefix in enumerate(prefixes):
            name = self._enter(call, i)
            call.out[i] = lambda request: self._sample_of(request, call)
            self._decoder.add(
                Request(
                    token=prefix.token,
                    kind=prefix.kind,
                    seed=prefix.seed,
                    steps=params.latents,
                    max_tokens=min(params.max_tokens, self.max_length - len(prefix.token) - params.latents),
                    stop_ids=self.stop_ids | set(params.stop_ids),
                    distribution=distribution,
                    greedy=greedy,
                    eps_seed=prefix.eps_seed,
                    tag=name,
                )
            )
            self._calls[name] = call

    def _sample_of(self, request: Request, call: Call) -> Sample:
        latent = np.arange(len(request.out_token)) < request.latents
        return Sample(
            token=np.array(request.out_token, np.int32),
            logprob=np.array(request.out_logprob, np.float32),
            version=np.array(request.out_version, np.int32),
            latent=latent,
            finish=request.finish,
            seconds=time.perf_counter() - call.started,
        )
