"""FSDP2: weights, gradients and optimiser state of a role sharded over the learner's ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from models.loading import RoleModel


def shard(model: RoleModel) -> None:
    """Shard every decoder layer and the rest of the model in place; gradients are summed, not averaged, over ranks.

    The learner divides by global denominators itself, so an average would be wrong by the number of ranks.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in model.base.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # the learner calls these, not forward(): each must gather the root's weights (embedding, norm, lm_head) first
    for method in ("hidden", "logits", "value"):
        register_fsdp_forward_method(model, method)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
