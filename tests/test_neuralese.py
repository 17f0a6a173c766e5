"""Neuralese-SFT: what an example holds, that the loss is supervised fine-tuning's own, the causal battery and the lens against closed
forms."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.types import Group, ProbePlan, SamplingParams
from algorithms.base import Context
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig
from envs.base import Task
from envs.pointer_chase import PointerChase
from models import causal
from models.causal import INTERVENTIONS, battery, intervene, shortened
from models.feedback import Thinker, ThinkerConfig
from models.forward import ModelForward, collate, score_traces
from models.lens import _effective_rank, look
from models.loading import RoleModel, load_role
from models.scratch import write_model
from models.trace import Kind, Score, Trace


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = write_model(
        tmp_path_factory.mktemp("m") / "model", PointerChase().words(), family="gpt2", width=32, length=64
    )
    Thinker(ThinkerConfig(), load_role(str(path)).base).save(path)
    return str(path)


def method(folder: str, latents: int = 3, **options: Any) -> NeuraleseSFT:
    return NeuraleseSFT(NeuraleseSFTConfig(**options), Context(folder, SamplingParams(latents=latents), seed=0))


def tasks(n: int, split: str = "train") -> list[Task]:
    return list(itertools.islice(PointerChase().tasks(split), n))


def test_an_example_is_prompt_latents_answer_end(folder: str) -> None:
    algorithm, task = method(folder), tasks(1)[0]
    trace = algorithm.example(task, 5, 0)
    tokenizer = algorithm.context.tokenizer
    assert tokenizer.decode(trace.token[trace.kind == Kind.CONTEXT].tolist()) == task.prompt
    assert (trace.token[trace.kind == Kind.LATENT] == tokenizer.convert_tokens_to_ids("<latent>")).all()
    target = trace.token[trace.kind == Kind.TARGET].tolist()
    assert tokenizer.decode(target[:-1]) == task.answer
    assert target[-1] == tokenizer.eos_token_id
    assert trace.where(Kind.LATENT).tolist() == [11, 12, 13]
    again = algorithm.example(task, 5, 9)
    assert (again.token == trace.token).all()
    assert again.eps_seed == trace.eps_seed


def test_the_number_of_steps_can_be_drawn(folder: str) -> None:
    algorithm = method(folder, latents=6, steps="random", sigma=0.4)
    task = tasks(1)[0]
    drawn = [int((algorithm.example(task, i, 0).kind == Kind.LATENT).sum()) for i in range(800)]
    assert min(drawn) >= 1
    assert max(drawn) <= 24
    # a Poisson of a log-normal: variance m + m^2 (e^{s^2} - 1)
    assert np.mean(drawn) == pytest.approx(6, abs=0.6)
    assert np.var(drawn) == pytest.approx(6 + 36 * (np.exp(0.16) - 1), rel=0.3)


def test_a_curriculum_replaces_written_steps_one_after_another(folder: str) -> None:
    algorithm = method(folder, latents=6, curriculum={"updates_per_stage": 10, "latents_per_step": 2})
    task = Task("t", "0 1 from 1 hops4", answer="7", steps=("3", "4", "5"))
    shapes = []
    for version in (0, 9, 10, 20, 30, 40, 500):
        trace = algorithm.example(task, 0, version)
        written = algorithm.context.tokenizer.decode(trace.token[trace.kind == Kind.TARGET].tolist()[:-1])
        shapes.append((int((trace.kind == Kind.LATENT).sum()), written))
    expected = [(0, "3 4 5 7"), (0, "3 4 5 7"), (2, "4 5 7"), (4, "5 7"), (6, "7"), (6, "7"), (6, "7")]
    assert shapes == expected


def test_a_task_without_an_answer_is_named(folder: str) -> None:
    with pytest.raises(ValueError, match="task lost has no answer"):
        method(folder).example(Task("lost", "0 from 0 hops1"), 0, 0)


def test_without_latents_the_loss_is_transformers_own(folder: str) -> None:
    algorithm = method(folder, latents=0)
    model = load_role(folder)
    groups = [Group(t, [algorithm.example(t, i, 0)], i) for i, t in enumerate(tasks(9))]
    algorithm.credit(groups)
    traces = [g.traces[0] for g in groups]
    batch = collate(traces, [t.view() for t in traces])
    term = algorithm.terms("policy", ModelForward(model, batch), batch)["ce"]
    mine = (term.loss_BT * batch["ce"]).sum() / (batch["ce"] != 0).sum()
    labels = batch.token_BT.masked_fill(batch.kind_BT != Kind.TARGET, -100)
    assert mine.item() == pytest.approx(model.lm(input_ids=batch.token_BT, labels=labels).loss.item(), abs=1e-5)


def made(folder: str, n: int, latents: int = 3) -> tuple[RoleModel, list[Trace]]:
    algorithm = method(folder, latents)
    return load_role(folder).eval(), [algorithm.example(t, i, 0) for i, t in enumerate(tasks(n, "test"))]


def test_given_latents_read_like_thought_ones(folder: str) -> None:
    model, traces = made(folder, 12)
    batch = collate(traces, [t.view() for t in traces])
    forward = ModelForward(model, batch)
    latents = forward.latents
    assert latents is not None
    assert torch.allclose(forward(latents).logprobs_BT, forward.logprobs_BT, atol=1e-5)
    assert not torch.allclose(forward(0 * latents).logprobs_BT, forward.logprobs_BT, atol=1e-3)


def test_interventions_do_what_they_are_called() -> None:
    rng = torch.Generator().manual_seed(0)
    z = torch.randn(7, 4, 5)
    out = {name: intervene(name, z, rng) for name in INTERVENTIONS}
    assert (out["zero"] == 0).all()
    assert torch.allclose(out["mean"][3], z.mean(0))
    assert torch.allclose(out["noise"].norm(dim=-1), z.norm(dim=-1), atol=1e-5)
    assert torch.allclose(out["shuffle"].sort(1).values, z.sort(1).values)
    donors = [next(j for j in range(7) if torch.equal(out["transplant"][i], z[j])) for i in range(7)]
    assert sorted(donors) == list(range(7))
    assert all(i != j for i, j in enumerate(donors))


def test_the_battery_judges_whole_answers(folder: str) -> None:
    model, traces = made(folder, 20)
    found = battery(model, traces, 3)
    assert set(found) == {"clean", *INTERVENTIONS, "truncate 0", "truncate 1", "truncate 2"}
    scores = score_traces(model, traces)
    expected = [float(np.nansum(s)) for s in scores]
    assert np.allclose(found["clean"].logprob, expected, atol=1e-4)
    bare = score_traces(model, [shortened(t, 0) for t in traces])
    assert np.allclose(found["truncate 0"].logprob, [float(np.nansum(s)) for s in bare], atol=1e-4)


def test_a_probe_reads_the_answer_behind_the_latents(folder: str) -> None:
    """log p(y*|x) of a latent thinker is one reading: what the battery calls clean."""
    algorithm, asked = method(folder), tasks(6, "test")
    actors: Any = [SimpleNamespace(name=str(i), seed=i) for i in range(6)]
    groups = asyncio.run(algorithm.probe(asked, actors, ProbePlan(32)))
    traces = [group.traces[0] for group in groups]
    model, examples = made(folder, 6)
    assert [t.token.tolist() for t in traces] == [t.token.tolist() for t in examples]
    for trace, values in zip(traces, score_traces(model, traces), strict=True):
        trace.scores["policy"] = Score(values, 0)
    each = algorithm.by_task(groups)
    assert each["logp_answer"] == pytest.approx(battery(model, examples, 3)["clean"].logprob.tolist(), abs=1e-4)
    assert algorithm.diagnose(groups, each) == {"logp_answer": pytest.approx(np.mean(each["logp_answer"]))}


def test_the_battery_does_not_depend_on_how_much_is_read_at_once(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, traces = made(folder, 5)
    whole = battery(model, traces, 3)
    monkeypatch.setattr(causal, "POSITIONS", 2 * max(map(len, traces)))
    parts = battery(model, traces, 3)
    for name, outcome in whole.items():
        assert outcome.logprob == pytest.approx(parts[name].logprob, abs=1e-4)
        assert (outcome.correct == parts[name].correct).all()


def test_effective_rank_of_known_spectra() -> None:
    axes = torch.cat([torch.eye(6)[:4], -torch.eye(6)[:4]])  # four equal singular values, mean zero
    assert _effective_rank(axes).item() == pytest.approx(4, abs=1e-4)
    assert _effective_rank(torch.randn(9, 1) @ torch.randn(1, 6)).item() == pytest.approx(1, abs=1e-3)


def test_gain_is_that_of_the_jacobian(folder: str) -> None:
    """The root mean square over directions is |J|_F / sqrt(D), here from autograd."""
    model, traces = made(folder, 40, latents=2)
    measured = look(model, traces, 2).gain_K[0]
    squares = []
    for trace in traces:
        short = shortened(trace, 1)
        batch = collate([short], [short.view()])
        at = int(short.where(Kind.LATENT)[0])
        own = ModelForward(model, batch).latents
        assert own is not None

        def following(z: torch.Tensor, batch: Any = batch, at: int = at) -> torch.Tensor:
            assert model.thinker is not None
            return model.thinker(ModelForward(model, batch, latents=z[None]).hidden_BTD[0, at][None])[0]

        jacobian: Any = torch.autograd.functional.jacobian(following, own[0].detach())
        squares.append(float(jacobian.square().sum() / jacobian.shape[1]))
    assert measured == pytest.approx(np.sqrt(np.mean(squares)), rel=0.25)


def test_pointer_chase_answers_and_splits() -> None:
    env = PointerChase(symbols=6, hops=4, ramp=10)
    for task in itertools.islice(env.tasks("test"), 200):
        words = str(task.prompt).split()
        table, at = [int(w) for w in words[:6]], int(words[7])
        for _ in range(task.meta["hops"]):
            at = table[at]
        assert str(at) == task.answer
        assert env.grade(task, f"so {at}").value == 1.0
        assert env.grade(task, "").value == 0.0
    first = [t.meta["hops"] for t in itertools.islice(env.tasks("train"), 60)]
    assert set(first[:10]) == {1}
    assert max(first[:20]) == 2
    assert {t.meta["hops"] for t in itertools.islice(env.tasks("hops3"), 20)} == {3}
    seen = {str(t.prompt).rsplit(" ", 1)[0] for t in itertools.islice(env.tasks("train"), 500)}
    held = {str(t.prompt).rsplit(" ", 1)[0] for t in itertools.islice(env.tasks("test"), 500)}
    assert not seen & held


def test_files_of_answers(tmp_path: Path) -> None:
    from envs.answers import Answers

    gsm = tmp_path / "train.txt"
    gsm.write_text("How many? 2 and 3||<<2+3=5>> #### 5\nAnd 4?||<<5+4=9>> <<9*2=18>> #### 18\n")
    env = Answers(str(gsm), share=0.5)
    task = env.tasks("train")[0]
    assert (task.prompt, task.answer, task.steps) == ("How many? 2 and 3", "5", ("<<2+3=5>>",))
    assert env.grade(task, "<<2+3=5>> #### 5").value == 1.0
    assert env.grade(task, "6").value == 0.0
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"question": "a", "answer": "b"}\n{"question": "a"\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: not valid JSON"):
        Answers(str(broken))
    broken.write_text('{"question": "a"}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1 lacks a text"):
        Answers(str(broken))
