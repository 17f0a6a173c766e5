"""The latent chain against a plain loop over every row alone, in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from models.chain import Chain, Gradient, run_chain, token_ids
from models.chain_plan import plan_chain, segments
from models.feedback import Thinker, ThinkerConfig
from models.packing import enable
from models.trace import Kind

L, C, A = int(Kind.LATENT), int(Kind.CONTEXT), int(Kind.TARGET)
ROWS = {
    "one": [[C] * 4 + [L] * 3 + [A] * 2],
    "ragged": [[C] * 5 + [L] * 3 + [A] * 2, [C] * 2 + [L] * 3 + [A] * 4, [C] * 3 + [L] * 3 + [A]],
    "mixed K": [[C] * 3 + [A] * 2, [C] * 5 + [L] * 4 + [A] * 2, [C] * 2 + [L] + [A] * 3, [C] * 4 + [L] * 2],
    "blocks": [
        [C] * 3 + [L] * 2 + [A] * 2 + [C] * 3 + [L] * 3 + [A],
        [C] * 4 + [L] * 3 + [A],
        [C] * 2 + [L] + [A] * 2 + [L] * 4 + [A] * 2 + [L],
    ],
}


def make_lm(family: str) -> torch.nn.Module:
    import transformers as t

    torch.manual_seed(0)
    same: dict[str, Any] = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    llama: dict[str, Any] = {**same, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
    lm = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=4, n_positions=64)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**llama)),
        "qwen": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**llama, head_dim=8, tie_word_embeddings=True)),
    }[family]()
    lm = lm.double().eval()
    for parameter in lm.parameters():
        parameter.data.normal_(0, 0.3)
    for module in lm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(double_norm, module)  # transformers computes it in float32 whatever the dtype
    return lm


def double_norm(module, x: Tensor) -> Tensor:
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def make_batch(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = ROWS[name]
    length = np.array([len(row) for row in rows])
    kind = np.full((len(rows), length.max()), C, np.uint8)
    token = np.array(np.random.default_rng(0).integers(1, 31, kind.shape))
    token[1:, :2] = token[0, :2]  # a shared beginning
    for b, row in enumerate(rows):
        kind[b, : len(row)] = row
    return token, kind, length


class Cut(DynamicCache):
    """A cache that can hold what is written to it as constants."""

    constant = False

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *more: Any, **options: Any) -> Any:
        if self.constant:
            key_states, value_states = key_states.detach(), value_states.detach()
        return super().update(key_states, value_states, layer_idx, *more, **options)


def plain(
    lm, thinker: Thinker, token: np.ndarray, kind: np.ndarray, n: int, grad: Gradient, noise: Tensor | None
) -> Tensor:
    """[n, D] hidden states of one row, position by position through transformers' own growing cache, which autograd sees."""
    embed, cache = lm.get_input_embeddings(), Cut(config=lm.config)
    out: list[Tensor] = []
    for start, stop in segments(kind[:n]):
        for t in range(start, stop):
            cache.constant = False
            if kind[t] != L:
                x = embed(torch.tensor([int(token[t])]))
            else:
                x = thinker((out[-1].detach() if grad.detached else out[-1])[None])
                if noise is not None:
                    x = thinker.noisy(x, noise[t][None])
                if grad.last is not None and stop - t > grad.last:
                    cache.constant, x = True, x.detach()
            hidden = lm.base_model(inputs_embeds=x[None], past_key_values=cache, use_cache=True).last_hidden_state[0, 0]
            out.append(hidden.detach() if cache.constant else hidden)
    return torch.stack(out)


def gradients(loss: Tensor, *modules: torch.nn.Module) -> dict[str, Tensor]:
    for module in modules:
        module.zero_grad()
    loss.backward()
    named = [(f"{i}.{name}", p) for i, module in enumerate(modules) for name, p in module.named_parameters()]
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def chain_hidden(
    lm, thinker: Thinker, batch, grad: Gradient, noise: Tensor | None = None, general: bool = False
) -> tuple[Tensor, Tensor]:
    token, kind, length = batch
    plan = plan_chain(token, kind, length, "cpu")
    epsilon = None
    if noise is not None:
        epsilon = torch.zeros(plan.positions, noise.shape[-1], dtype=noise.dtype)
        latent = (torch.from_numpy(kind) == L) & (torch.arange(kind.shape[1]) < torch.from_numpy(length)[:, None])
        epsilon[plan.place_L] = noise[latent]
    chain = Chain(lm, thinker, plan, grad, epsilon, general)
    assert (chain.fast is None) == general
    hidden, _ = run_chain(chain, lm.get_input_embeddings()(token_ids(plan)))
    return hidden[plan.at_BT], hidden


def weights(batch) -> Tensor:
    """A random cotangent of the real positions."""
    token, _, length = batch
    real = torch.arange(token.shape[1]) < torch.from_numpy(length)[:, None]
    return (
        torch.randn(*token.shape, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * real[..., None]
    )


@pytest.mark.parametrize("kind", ["gated", "mlp", "raw", "soft"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_feedback_and_families(family: str, kind) -> None:
    check(family, kind, "mixed K", "exact")


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen"])
def test_the_general_way(family: str) -> None:
    check(family, "gated", "blocks", "exact", general=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("grad", ["exact", "recompute", "detached", "truncated:2"])
def test_gradient_modes(rows: str, grad: str) -> None:
    check("qwen", "gated", rows, grad)


def test_noise_is_part_of_the_chain() -> None:
    check("llama", "gated", "blocks", "recompute", noise=0.3)


def check(family: str, kind, rows: str, mode: str, noise: float = 0.0, general: bool = False) -> None:
    lm = make_lm(family)
    torch.manual_seed(1)
    thinker = Thinker(ThinkerConfig(kind=kind, noise=noise), lm).double()
    batch = make_batch(rows)
    token, kinds, length = batch
    grad = Gradient.parse(mode)
    eps = torch.randn(*token.shape, 16, dtype=torch.float64) if noise else None
    weight = weights(batch)
    expected = [
        plain(lm, thinker, token[b], kinds[b], int(n), grad, None if eps is None else eps[b])
        for b, n in enumerate(length)
    ]
    loss = torch.stack([(h * weight[b, : len(h)]).sum() for b, h in enumerate(expected)]).sum()
    wanted = gradients(loss, lm, thinker)
    assert enable(lm)
    hidden, _ = chain_hidden(lm, thinker, batch, grad, eps, general)
    for b, row in enumerate(expected):
        assert torch.allclose(hidden[b, : len(row)], row, rtol=0, atol=1e-10)
    found = gradients((hidden * weight).sum(), lm, thinker)
    for name, value in wanted.items():
        scale = max(float(value.abs().max()), 1e-3)
        assert float((found[name] - value).abs().max()) < 1e-9 * scale, name
