"""Decoding behind two prompts in lock-step, against a plain loop that reads everything anew; `posterior eval --guided`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from envs.walk import Walk
from models.loading import load_role
from models.lockstep import FLOOR, greedy, guided, lockstep
from models.scratch import write_model
from posterior.config_load import ConfigError
from posterior.guided import eval_guided

PLAIN = [np.array([3, 4, 5]), np.array([6]), np.array([7, 8])]
SHOWN = [np.array([9, 3]), np.array([5, 6, 4, 3]), np.array([8])]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def walker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("walker") / request.param
    return str(
        write_model(folder, Walk().words(), family=request.param, layers=2, width=32, heads=2, length=64, seed=1)
    )


@torch.no_grad()
def plain_loop(model: torch.nn.Module, place: int, ends: set[int], most: int, *, hinted: bool) -> list[int]:
    """The definition, one row at a time and without a cache."""
    out: list[int] = []
    while len(out) < most and not (out and out[-1] in ends):
        p, q = (
            model.lm(torch.tensor([[*row[place].tolist(), *out]])).logits[0, -1].log_softmax(-1)  # type: ignore[operator]
            for row in (PLAIN, SHOWN)
        )
        allowed = p.exp() >= FLOOR * p.exp().max()
        out.append(int((torch.where(allowed, q - p, -torch.inf) if hinted else p).argmax()))
    return out


def test_lockstep_is_the_plain_loop(walker: str) -> None:
    model = load_role(walker).double().eval()
    for choose, prompts in ((guided, [PLAIN, SHOWN]), (greedy, [PLAIN])):
        free = lockstep(model, prompts, choose, set(), 12)
        assert [len(row) for row in free] == [12] * 3
        ends = {int(free[1][4])}  # one that is written somewhere
        for stop in (set(), ends):
            got = lockstep(model, prompts, choose, stop, 12)
            expected = [plain_loop(model, i, stop, 12, hinted=choose is guided) for i in range(3)]
            assert [row.tolist() for row in got] == expected
    assert not np.array_equal(
        lockstep(model, [PLAIN, SHOWN], guided, set(), 12)[0], lockstep(model, [PLAIN], greedy, set(), 12)[0]
    )


def test_a_guide_that_says_the_same_changes_nothing_but_ties() -> None:
    """Where the hint adds nothing every candidate ties, and the choice stays among candidates."""
    logp = torch.log(torch.tensor([[0.6, 0.3, 0.06, 0.04]]))
    assert int(guided(torch.stack([logp, logp]))) in (0, 1, 2)
    hinted = torch.log(torch.tensor([[0.3, 0.2, 0.06, 0.44]]))  # the last is raised most, but is no candidate
    assert int(guided(torch.stack([logp, hinted]))) == 2


def test_eval_guided(walker: str) -> None:
    found = eval_guided(walker, "walk", {}, "{prompt}", split="test", tasks=70, max_tokens=4, checkpoint="newest")
    ways = found["splits"]["test"]
    assert set(ways) == {"greedy", "hinted", "guided"}
    assert ways["greedy"] == ways["hinted"]  # the same prompt
    assert all(way["n"] == 70 and 1 <= way["thought_length"] <= 4 for way in ways.values())
    assert not found["sees_answer"]


@pytest.mark.parametrize(
    ("env", "hint", "said"),
    [("walk", "no place for it", "template with"), ("key_door", "{prompt}", "several turns")],
)
def test_eval_guided_refuses(walker: str, env: str, hint: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        eval_guided(walker, env, {}, hint, split=None, tasks=2, max_tokens=4, checkpoint="newest")
