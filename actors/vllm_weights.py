"""New weights into a running vLLM engine, through vLLM's own weight-transfer interface. The one file that knows how.

The backend takes arrays that already lie in the engine's process (Ray hands them over zero-copy). On CPU vLLM 0.32 keeps only packed
copies of linear weights, and its layer-wise reload, which unpacks and repacks them, leaves a tied lm_head at the old embedding
without any error. Where every layer is an ordinary linear or embedding layer, weights are therefore kept beside their packed
copies: vLLM's own loaders write into them and they are packed again, in about half the time. Other models on CPU (experts,
quantised layers) and every model on a GPU go through the layer-wise reload.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "arrays"


@dataclass
class ArraysInit(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class ArraysUpdate(WeightTransferUpdateInfo):
    """arrays: Hugging Face parameter name -> numpy array."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class ArraysEngine(WeightTransferEngine[ArraysInit, ArraysUpdate]):
    """Loads arrays of this process into the model."""

    init_info_cls = ArraysInit
    update_info_cls = ArraysUpdate

    def init_transfer_engine(self, init_info: ArraysInit) -> None:
        pass

    def start_weight_update(self) -> None:
        if not _kept(self.model):
            initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: ArraysUpdate) -> None:
        # Ray's arrays are read-only views of shared memory; the loader copies out of them and never writes
        load: Any = self.model.load_weights
        load((name, _tensor(array)) for name, array in update_info.arrays.items())

    def finish_weight_update(self) -> None:
        if _kept(self.model):
            _repack(self.model)
            return
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        pass


def _tensor(array: np.ndarray) -> torch.Tensor:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _keep_weights() -> None:
    """From now on a linear layer that is packed for the CPU keeps its plain weight."""
    from vllm.model_executor.layers import linear
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    plain = linear.UnquantizedLinearMethod.process_weights_after_loading

    def process(self: Any, layer: torch.nn.Module) -> None:
        if getattr(layer, "_cpu_skip_gemm_dispatch", False):
            plain(self, layer)
        else:
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)

    method: Any = linear.UnquantizedLinearMethod
    method.process_weights_after_loading = process


def _kept(model: Any) -> bool:
    """Whether every layer of a model on CPU has its plain weight."""
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
    from vllm.platforms import current_platform

    methods = (getattr(layer, "quant_method", None) for layer in model.modules())
    ordinary = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
    return current_platform.is_cpu() and all(type(method) in ordinary for method in methods if method is not None)


def _repack(model: Any) -> None:
    """Pack every weight that a matrix product reads."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    head = getattr(model, "lm_head", None)
    for layer in model.modules():
        only_looked_up = isinstance(layer, VocabParallelEmbedding) and not isinstance(layer, ParallelLMHead)
        if hasattr(layer, "cpu_linear") and (layer is head or not only_looked_up):
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _repack_tied_head(model: Any) -> None:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    head = getattr(model, "lm_head", None)
    embedding = getattr(getattr(model, "model", None), "embed_tokens", None)
    if (
        head is not None
        and embedding is not None
        and head is not embedding
        and getattr(head, "weight", None) is embedding.weight
    ):
        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def register() -> None:
    """Make the backend known to vLLM; must run in the engine's process before the engine is built."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, ArraysEngine)
        if not torch.cuda.is_available():
            _keep_weights()


def update(llm: Any, arrays: dict[str, np.ndarray], version: int) -> None:
    """Replace the weights of an in-process `vllm.LLM` between two engine steps and void every cached key and value.

    Running requests go on: their past is recomputed under the new weights, so that later tokens are exactly the new policy's.
    """
    llm.start_weight_update()
    llm.update_weights({"update_info": {"arrays": arrays}})
    llm.finish_weight_update(str(version))
    if not llm.reset_prefix_cache(reset_running_requests=True):
        raise RuntimeError(
            "vLLM did not give up its key/value cache after a weight update; its tokens would mix two policies"
        )
