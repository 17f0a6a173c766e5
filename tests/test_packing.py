"""Packed rows give what every row alone gives: hidden states and gradients, for the model families people train."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from models.forward import deal
from models.packing import enable, pack, packed_hidden, plan_packed

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "resid_pdrop": 0, "embd_pdrop": 0}
FAMILIES = {
    "qwen3": SMALL,
    "llama": SMALL,
    "gpt2": {**GPT2, "attn_pdrop": 0, "initializer_range": 0.3},
    "mistral": {**SMALL, "sliding_window": 6},
    "gemma3_text": {**SMALL, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
}


def small(family: str) -> Any:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**FAMILIES[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").double()


def branching_rows() -> list[np.ndarray]:
    """Rows that share prompts, parts of answers, everything, or nothing; one row is the beginning of another."""
    rng = np.random.default_rng(0)
    word = lambda n: rng.integers(2, 50, n)  # noqa: E731
    first, second = word(7), word(4)
    turn = np.concatenate([first, word(5)])
    rows = [
        first,
        turn,
        np.concatenate([turn, word(9)]),
        np.concatenate([turn, word(20)]),
        np.concatenate([first, word(1)]),
    ]
    rows += [np.concatenate([second, word(n)]) for n in (1, 3, 12, 12)] + [word(1), turn.copy()]
    return [rows[i] for i in rng.permutation(len(rows))]


def padded(rows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    length = np.array([len(row) for row in rows])
    token = np.zeros((len(rows), length.max()), np.int64)
    for b, row in enumerate(rows):
        token[b, : len(row)] = row
    return token, length


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_hidden_states_and_gradients_equal_those_of_single_rows(family: str) -> None:
    rows = branching_rows()
    # RMS norms compute in float32 whatever the model's dtype; GPT-2 is float64 throughout
    close = 1e-10 if family == "gpt2" else 1e-5
    plain, model = small(family), small(family)
    assert enable(model)
    token, length = padded(rows)
    packing = pack(token, length)
    assert len(packing.token_N) < length.sum()
    hidden_ND = packed_hidden(model, packing)
    readout = torch.randn(hidden_ND.shape[1], dtype=torch.float64)
    loss, expected_loss = torch.zeros(()).double(), torch.zeros(()).double()
    for b, row in enumerate(rows):
        expected = plain.base_model(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state[0]
        mine = hidden_ND[packing.at_BT[b, : len(row)]]
        torch.testing.assert_close(mine, expected, rtol=0, atol=close * float(expected.detach().abs().max()))
        weight = torch.arange(1, len(row) + 1) * (b + 1)
        loss, expected_loss = (
            loss + (mine @ readout) @ weight.double(),
            expected_loss + (expected @ readout) @ weight.double(),
        )
    loss.backward()
    expected_loss.backward()
    expected_gradients = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            expected = expected_gradients[name]
            torch.testing.assert_close(
                parameter.grad, expected, rtol=0, atol=close * float(expected.abs().max()) + 1e-12
            )


def test_a_model_that_cannot_read_packed_rows_stays_as_it_was() -> None:
    small_mamba: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    config = CONFIG_MAPPING["mamba"](**small_mamba)
    model = AutoModelForCausalLM.from_config(config)
    ids = torch.arange(2, 12)[None]
    before = model(ids).logits
    assert not enable(model)
    assert torch.equal(model(ids).logits, before)


def test_sharing_is_complete() -> None:
    """As many positions as there are distinct beginnings among all rows."""
    rows = branching_rows()
    token, length = padded(rows)
    distinct = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    assert len(pack(token, length).token_N) == len(distinct)


@pytest.mark.parametrize("budget", [1, 20, 45, 1000])
def test_micro_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    rows = branching_rows()
    plan = plan_packed(rows, budget)
    assert sorted(i for part in plan for i in part) == list(range(len(rows)))
    for part in plan:
        token, length = padded([rows[i] for i in part])
        assert len(part) == 1 or len(pack(token, length).token_N) <= budget
    assert len(plan) == 1 or budget < 1000


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3, 16])
def test_every_row_is_dealt_to_one_rank(ranks: int, packs: bool) -> None:
    rows = branching_rows()
    dealt = deal(rows, ranks, packs)
    assert len(dealt) == ranks
    assert sorted(i for part in dealt for i in part) == list(range(len(rows)))
    assert deal([], ranks, packs) == [[] for _ in range(ranks)]
