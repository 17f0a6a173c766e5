"""CODI's distillation: who is compared with whom, the loss computed directly, and its indifference to micro-batches."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_update import ADAM

from actors.types import Group, SamplingParams
from actors.update import Updater
from algorithms.base import Context
from algorithms.neuralese_sft import NeuraleseSFT, NeuraleseSFTConfig, distance
from envs.base import Task
from envs.pointer_chase import PointerChase
from models.feedback import Thinker, ThinkerConfig
from models.forward import Distribution, ModelForward, collate
from models.loading import load_role
from models.roles import RoleSpec
from models.scratch import write_model
from models.trace import Kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = PointerChase().words()
    path = write_model(tmp_path_factory.mktemp("m") / "model", words, family="gpt2", width=32, length=64)
    Thinker(ThinkerConfig(), load_role(str(path)).base).save(path)
    return str(path)


def method(folder: str, **options: Any) -> NeuraleseSFT:
    sampling = SamplingParams(latents=5, latents_from="task")
    return NeuraleseSFT(NeuraleseSFTConfig(**{"distill": 2.5, **options}), Context(folder, sampling, seed=0))


def groups_of(algorithm: NeuraleseSFT, n: int = 12) -> list[Group]:
    tasks = itertools.islice(PointerChase().tasks("train"), n)
    groups = [Group(task, algorithm.examples(task, i, 0), i) for i, task in enumerate(tasks)]
    algorithm.credit(groups)
    return groups


def test_a_teacher_reads_the_written_steps_and_a_student_thinks_instead(folder: str) -> None:
    algorithm = method(folder)
    task = Task("t", "0 1 from 1 hops4", answer="7", steps=("3", "4", "5"))
    student, teacher = algorithm.examples(task, 4, 0)
    tokenizer = algorithm.context.tokenizer
    assert student.group == teacher.group == "4"
    assert student.episode != teacher.episode
    assert len(student.where(Kind.LATENT)) == 4
    assert len(teacher.where(Kind.LATENT)) == 0
    words = tokenizer.decode(teacher.token[teacher.kind == Kind.TARGET].tolist()).split()
    assert words == ["3", "4", "5", "7", tokenizer.eos_token]
    for trace in (student, teacher):
        assert tokenizer.decode(trace.token[trace.meta["answer_at"] :].tolist()).split() == ["7", tokenizer.eos_token]
    # a task that is done in one step has a teacher that answers at once; one whose steps nobody knows has none
    bare = algorithm.examples(Task("u", "0 from 0 hops1", answer="0", steps=()), 0, 0)[1]
    assert bare.meta["answer_at"] == len(bare.where(Kind.CONTEXT))
    with pytest.raises(ValueError, match="task v has no written steps"):
        algorithm.examples(Task("v", "0 from 0 hops1", answer="0"), 0, 0)
    assert len(method(folder, distill=0).examples(task, 4, 0)) == 1
    with pytest.raises(ValidationError, match="choose one"):
        method(folder, curriculum={})


def test_the_loss_is_the_direct_computation(folder: str) -> None:
    """Each trace alone through transformers (teacher) or the chain (student), the distance written out by hand."""
    algorithm = method(folder)
    groups = groups_of(algorithm)
    model = load_role(folder).double().eval().requires_grad_(False)
    traces = [t for g in groups for t in g.traces]
    batch = collate(traces, [t.view() for t in traces])
    term = algorithm.terms("policy", ModelForward(model, batch), batch)["distill_last_layer"]
    mine = float((term.loss_BT.detach() * batch["distill"]).sum()) / int((batch["distill"] != 0).any(1).sum())
    expected = []
    for student, teacher in (g.traces for g in groups):
        read = model.lm(torch.from_numpy(teacher.token.astype(np.int64))[None], output_hidden_states=True)
        shown = read.hidden_states[-1][0, teacher.meta["answer_at"] - 1]
        alone = collate([student], [student.view()])
        own = ModelForward(model, alone).hidden_BTD[0, student.meta["answer_at"] - 1]
        apart = (own - shown).abs()
        expected.append(float(torch.where(apart < 1, apart**2 / 2, apart - 0.5).mean() / shown.std()))
    assert mine == pytest.approx(2.5 * np.mean(expected), rel=1e-5)
    assert min(expected) > 0


def test_no_gradient_reaches_the_teacher(folder: str) -> None:
    groups = groups_of(method(folder), 3)
    traces = [t for g in groups for t in g.traces]
    hidden = torch.randn(6, max(map(len, traces)), 8, requires_grad=True)
    distance(hidden, traces).sum().backward()
    assert hidden.grad is not None
    moved = hidden.grad.abs().sum(-1).nonzero().tolist()
    assert moved == [[2 * i, g.traces[0].meta["answer_at"] - 1] for i, g in enumerate(groups)]
    with pytest.raises(ValueError, match="teacher of group 1 is not"):
        distance(hidden[[0, 1, 2]], [traces[i] for i in (0, 1, 2)])


def test_the_gradient_does_not_depend_on_micro_batches(folder: str) -> None:
    """Pairs stay together, however small the budget; shuffled rows of a group would be refused."""
    found = []
    for budget in (1, 90, 100_000):
        algorithm = method(folder)
        spec = {"policy": RoleSpec(weights=folder, trainable=True)}
        updater = Updater(
            algorithm, {"policy": load_role(folder).double()}, spec, {"policy": ADAM}, Distribution(), budget
        )
        found.append(updater.gradients("policy", groups_of(algorithm)))
    plain = Updater(
        method(folder, distill=0), {"policy": load_role(folder).double()}, spec, {"policy": ADAM}, Distribution(), 90
    )
    without = plain.gradients("policy", groups_of(plain.algorithm))
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(without[n], g, rtol=1e-2) for n, g in found[0].items() if n in without)
