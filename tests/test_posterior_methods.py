"""Every posterior method, run for a few batches in this process on the walk: real sampling, scoring, credit and updates."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.local import LocalActors, LocalRun
from actors.types import ENTROPY, Group, ProbePlan, SamplingParams
from actors.update import OptimiserConfig
from algorithms.anchoring import entropic, lexical, zone
from algorithms.answer_sft import AnswerSFT
from algorithms.base import Algorithm, Context
from algorithms.cuts import complete_cuts, cut_figures
from algorithms.helper import SLEEP, Helper
from algorithms.probing import _ends, draw_probes, of_kind
from algorithms.registry import find
from algorithms.thoughts import (
    ANSWER_AT,
    HINTED,
    Thoughts,
    answer_loglik,
    given_answer,
    hinted,
    likelihoods,
    progress,
    thought,
)
from algorithms.trice import TRICE
from benchmarks.posterior_testbed import Testbed
from envs.base import Task
from envs.walk import GIVEN, Walk
from models.forward import Distribution, score_traces
from models.loading import load_tokenizer
from models.scratch import write_model
from models.trace import Kind, Score

BUDGET = 5
TASKS: list[Task] = list(itertools.islice(Walk().tasks("train"), 6))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = (*Walk().words(), "skeleton", "reason")
    folder = tmp_path_factory.mktemp("walker") / "model"
    return str(write_model(folder, words, family="gpt2", layers=1, width=32, heads=2, length=64, seed=2))


def build(model: str, name: str, **options: Any) -> Algorithm:
    cls = find(name)
    return cls(cls.Config(name=name, **options), Context(model, SamplingParams(max_tokens=BUDGET), 0))


def loop(model: str, name: str, **options: Any) -> LocalRun:
    end = load_tokenizer(model).eos_token_id
    settings = OptimiserConfig(1e-2, 0, (0.9, 0.95), 1e-8, 0.0, 1.0)
    return LocalRun(build(model, name, **options), settings, Walk(), [end])


ALL: list[tuple[str, dict[str, Any]]] = [
    ("jepo", {"group_size": 4}),
    ("jepo", {"group_size": 4, "bound": "single", "kl_coef": 0.1}),
    ("verifree", {"group_size": 4}),
    ("cot_flow", {"group_size": 4}),
    ("cot_flow", {"group_size": 4, "credit": "immediate"}),
    ("trice", {}),
    ("trice", {"resample": 5, "first": "prior"}),
    ("reverse_cot", {}),
    ("reverse_cot", {"skeleton": "one_call"}),
    ("reverse_cot", {"skeleton": "two_calls", "reason_sees_answer": False}),
    ("helper", {"group_size": 4, "first_steps": 1}),
    ("helper", {"group_size": 4, "first_steps": 0, "fit": "wake", "refit": "always", "denominator": "frozen"}),
]


@pytest.mark.parametrize(("name", "options"), ALL)
def test_a_method_learns_from_what_it_draws(model: str, name: str, options: dict[str, Any]) -> None:
    run = loop(model, name, **options)
    before = {n: p.detach().clone() for n, p in run.models["policy"].named_parameters()}
    rows = [run.step(TASKS) for _ in range(3)]
    assert all(row.get("skipped/policy", 0.0) == 0.0 for row in rows)
    assert any(not np.array_equal(before[n], p.detach()) for n, p in run.models["policy"].named_parameters())
    assert all(np.isfinite(value) for row in rows for value in row.values())
    # sampler and learner agree on what was sampled by the current version
    assert max(row.get("gap/max", 0.0) for row in rows) < 1e-4


def test_drawn_thoughts_end_and_are_closed(model: str) -> None:
    run = loop(model, "jepo", group_size=8)
    groups = run.collect(TASKS, 0)
    thoughts = Thoughts(load_tokenizer(model))
    traces = [trace for group in groups for trace in group.traces]
    assert len(traces) == 8 * len(TASKS)
    ends = {True: 0, False: 0}
    for trace in traces:
        z, at = trace.where(Kind.THOUGHT), trace.meta[ANSWER_AT]
        assert 1 <= len(z) <= BUDGET
        assert trace.token[at - 1] == thoughts.close
        forced = trace.kind[at - 1] == Kind.CONTEXT
        assert forced == (not trace.meta["closed"])
        assert np.isnan(trace.logprob[trace.kind != Kind.THOUGHT]).all()
        assert not np.isnan(trace.logprob[z]).any()
        assert given_answer(trace).sum() == 2  # the digit and the end
        ends[trace.meta["closed"]] += 1
    assert min(ends.values()) > 0, "the seed should give both kinds of ending"
    # drawn again with the same seeds, the same thoughts; another task index, others
    assert all(
        np.array_equal(a.token, b.token)
        for g, h in zip(groups, run.collect(TASKS, 0), strict=True)
        for a, b in zip(g.traces, h.traces, strict=True)
    )


def test_a_policy_reads_what_was_scored(model: str) -> None:
    """`answer_loglik` is log p(y*|x,z): computed by hand from the model."""
    run = loop(model, "jepo", group_size=2)
    groups = run.collect(TASKS[:1], 0)
    run.score(groups)
    trace = groups[0].traces[0]
    lm = run.models["policy"].base
    with torch.no_grad():
        logits = lm(input_ids=torch.tensor(trace.token[None].astype(np.int64))).logits[0].log_softmax(-1)
    at = trace.meta[ANSWER_AT]
    by_hand = sum(float(logits[t - 1, trace.token[t]]) for t in range(at, len(trace)))
    assert answer_loglik(trace) == pytest.approx(by_hand, abs=1e-4)


def test_a_hint_shows_the_answer_to_the_helper_only(model: str) -> None:
    run = loop(model, "helper", group_size=2, first_steps=5, fit="likelihood")
    groups = run.collect(TASKS[:2], 0)
    chat = Thoughts(load_tokenizer(model)).chat
    for task, group in zip(TASKS, groups, strict=False):
        awake = [t for t in group.traces if not t.meta.get(SLEEP)]
        asleep = [t for t in group.traces if t.meta.get(SLEEP)]
        assert len(awake) == len(asleep) == 2
        shown = chat.prompt_ids(GIVEN.format(prompt=task.prompt, answer=task.answer)).tolist()
        assert all(list(t.meta[HINTED]) == shown for t in awake)
        for own, with_y in zip(asleep, awake, strict=True):
            said = chat.decode(own.token[own.meta[ANSWER_AT] :]).strip()
            assert list(own.meta[HINTED]) == chat.prompt_ids(GIVEN.format(prompt=task.prompt, answer=said)).tolist()
            assert np.array_equal(own.token[thought(own)], with_y.token[thought(with_y)])  # one thought, two answers
            assert not given_answer(own).any()
    run.score(groups)
    for trace in (t for g in groups for t in g.traces):
        if trace.meta.get(SLEEP):  # teaches the helper; nobody needs its likelihood before
            assert not trace.scores
        else:
            assert progress(trace, "helper").shape == (len(trace.where(Kind.THOUGHT)),)


def test_stage_one_trains_the_helper_alone_and_state_survives(model: str) -> None:
    run = loop(model, "helper", group_size=4, first_steps=2, refit="never")
    method = run.algorithm
    assert isinstance(method, Helper)
    policy = run.models["policy"].state_dict()
    before = {name: value.clone() for name, value in policy.items()}
    rows = [run.step(TASKS), run.step(TASKS)]
    assert all(np.array_equal(before[n], v) for n, v in policy.items())
    assert all("grad_norm/policy" not in row and row["grad_norm/helper"] > 0 for row in rows)
    twin = build(model, "helper", group_size=4, first_steps=2, refit="never")
    twin.load(method.state())
    assert isinstance(twin, Helper)
    assert not twin.first_stage
    assert not twin.fitting
    third = run.step(TASKS)
    assert "grad_norm/helper" not in third
    assert third["grad_norm/policy"] > 0
    assert third["helper/age"] == 1.0


def test_refitting_follows_the_gap(model: str) -> None:
    method = build(model, "helper", first_steps=0, refit="gap", refit_gap=0.5)
    assert isinstance(method, Helper)
    method.batches = 1
    for gap, expected in ((0.4, False), (0.6, True)):
        method.gap = gap
        assert method.fitting is expected


def test_trice_keeps_one_memory_an_example(model: str) -> None:
    run = loop(model, "trice")
    method = run.algorithm
    assert isinstance(method, TRICE)
    run.step(TASKS)
    first = {name: memory.token.tolist() for name, memory in method.memory.items()}
    assert set(first) == {task.id for task in TASKS}
    twin = build(model, "trice")
    twin.load(method.state())
    assert isinstance(twin, TRICE)
    assert {n: m.token.tolist() for n, m in twin.memory.items()} == first
    # the next visit begins where the last one ended
    groups = run.collect(TASKS, len(TASKS))
    for task, group in zip(TASKS, groups, strict=True):
        memory, proposal = group.traces
        assert memory.token[thought(memory)].tolist() == first[task.id]
        assert proposal.where(Kind.THOUGHT).size > 0
    run.score(groups)
    log = [likelihoods(group.traces) for group in groups]
    method.credit(groups)
    for task, (old, new), group in zip(TASKS, log, groups, strict=True):
        now = method.memory[task.id].token.tolist()
        z = group.traces[1].token[: group.traces[1].meta[ANSWER_AT]].tolist()
        if new >= old:  # a better proposal is always accepted
            assert z[-len(now) :] == now


def test_star_imitates_what_was_graded_right(model: str) -> None:
    """With a grader that likes every answer all thoughts are imitated; with one that likes none, nothing is."""

    class FixedGrade(Walk):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def grade(self, task: Task, text: str) -> Any:
            from envs.base import Grade

            return Grade(self.value)

    run = loop(model, "star", group_size=3)
    for value, count in ((1.0, 3), (0.0, 1)):
        run.env = FixedGrade(value)
        group = run.collect(TASKS[:1], 0)[0]
        assert len(group.traces) == count
        run.score([group])
        run.algorithm.credit([group])
        weights = [t.weights.get("weight", np.zeros(len(t))) for t in group.traces]
        assert all((w != 0).any() == bool(value) for w in weights)
        if value:
            for trace, w in zip(group.traces, weights, strict=True):
                assert w[thought(trace) | given_answer(trace)] == pytest.approx(1 / 3)
                assert not w[: trace.where(Kind.TARGET)[0]].any()


def test_skeletons_are_not_imitated(model: str) -> None:
    chat = Thoughts(load_tokenizer(model)).chat
    method: Any = build(model, "reverse_cot", skeleton="one_call")
    trace = Thoughts(load_tokenizer(model))
    z = chat.ids("<think> 3 3 reason 1 2 </think>")
    from models.trace import Trace

    whole = Trace.from_target(chat.prompt_ids("0 1 2 3 4"), [], "t").extended(z, Kind.THOUGHT, np.zeros(len(z)))
    whole.meta["closed"] = True
    bare = trace.rethought(method._without_skeleton(whole), Task("t", "0 1 2 3 4", answer="1"))
    assert chat.tokenizer.decode(bare.token[thought(bare)].tolist()) == "<think> 1 2 </think>"
    unmarked = Trace.from_target(chat.prompt_ids("0"), [], "t").extended(z[:3], Kind.THOUGHT, np.zeros(3))
    assert method._without_skeleton(unmarked).meta["marked"] is False


def test_answer_sft_teaches_an_empty_thought_and_the_answer(model: str) -> None:
    method = build(model, "answer_sft")
    assert isinstance(method, AnswerSFT)
    trace = method.example(TASKS[0], 0, 0)
    taught = method.context.tokenizer.decode(trace.token[trace.kind == Kind.TARGET].tolist())
    assert taught.split()[:3] == ["<think>", "</think>", TASKS[0].answer]
    method.credit([Group(TASKS[0], [trace])])
    assert trace.weights["ce"].sum() == 4
    with pytest.raises(ValueError, match="has no answer"):
        method.example(Task("t", "0 1"), 0, 0)


def test_probes_tell_drawn_empty_and_foreign_thoughts_apart(model: str) -> None:
    run = loop(model, "helper", group_size=2)
    actors = [LocalActors(run.engine, Walk(), str(i), i) for i in range(3)]
    thoughts = Thoughts(load_tokenizer(model))
    groups = asyncio.run(
        draw_probes(thoughts, TASKS[:3], actors, ProbePlan(4), SamplingParams(max_tokens=BUDGET), GIVEN)
    )
    run.score(groups)
    figures = run.algorithm.diagnose(groups, run.algorithm.by_task(groups))
    logs = [likelihoods(of_kind(group, "drawn")) for group in groups]
    assert figures["logp_answer"] == pytest.approx(np.mean([np.log(np.exp(v).mean()) for v in logs]))
    assert figures["logp_answer"] >= figures["logp_given_thought"]
    empty = [answer_loglik(of_kind(group, "empty")[0]) for group in groups]
    assert figures["thought_gain"] == pytest.approx(np.mean([v.mean() for v in logs]) - np.mean(empty))
    foreign = of_kind(groups[0], "other")[0]
    donor = of_kind(groups[1], "drawn")[0]
    assert foreign.token[thought(foreign)][:-1].tolist()[:2] == donor.token[donor.kind == Kind.THOUGHT].tolist()[:2]
    assert {"helper_bayes_gap", "helper_slope", "helper_r2"} <= set(figures)


def test_anchoring_of_own_thoughts_and_of_those_that_saw_the_answer(model: str) -> None:
    """Against the metrics' definitions, from log-probabilities and entropies of plain readings."""
    run = loop(model, "jepo", group_size=2)
    actors = [LocalActors(run.engine, Walk(), str(i), i) for i in range(2)]
    thoughts, plan = Thoughts(load_tokenizer(model)), ProbePlan(4, 2, "3")
    groups = asyncio.run(draw_probes(thoughts, TASKS[:2], actors, plan, SamplingParams(max_tokens=BUDGET), GIVEN))
    run.score(groups)
    run.updater.read_entropy("policy", groups, 0)
    each = run.algorithm.by_task(groups)
    three = thoughts.chat.ids("3")[0]
    for place, (group, task) in enumerate(zip(groups, TASKS[:2], strict=True)):
        shown = list(thoughts.hinted_ids(task.prompt, GIVEN, str(task.answer)))
        answer, empty = thoughts.chat.ids(str(task.answer)), answer_loglik(of_kind(group, "empty")[0])
        for who, traces in (("anchoring", of_kind(group, "drawn")[:2]), ("hindsight", of_kind(group, "hindsight"))):
            assert len(traces) == 2
            zones: list[str] = []
            found: dict[str, list[float]] = {"lexical": [], "entropic": [], "probabilistic": []}
            for trace in traces:
                z = trace.token[thought(trace)].tolist()
                z = z[:-1] if who == "hindsight" and not trace.meta["closed"] else z  # the forced mark is given too
                steps: list[list[float]] = [[]]
                entropies = entropies_of(run, [*shown, *z])[len(shown) - 1 : -1]
                for token, entropy in zip(z, entropies, strict=True):
                    steps[-1].append(entropy)
                    steps += [[]] if token == three else []
                found["lexical"].append(lexical(z, answer))
                found["entropic"].append(entropic([float(np.mean(s)) for s in steps if s]))
                found["probabilistic"].append((answer_loglik(trace) - empty) / np.log(2) / (len(answer) + 1))
                zones.append(zone(found["entropic"][-1], found["probabilistic"][-1]))
            for name, values in found.items():
                assert each[f"{who}_{name}"][place] == pytest.approx(np.mean(values), abs=1e-4)
            assert each[f"{who}_zone_{zones[0]}"][place] == zones.count(zones[0]) / 2
    assert all(ENTROPY in t.scores for g in groups for t in of_kind(g, "reread"))


def entropies_of(run: LocalRun, row: list[int]) -> np.ndarray:
    """float[T] entropy of what follows each token, from a plain forward pass."""
    with torch.no_grad():
        logp = run.models["policy"].lm(torch.tensor([row])).logits[0].log_softmax(-1)
    return (-(logp.exp() * logp).sum(-1)).numpy()


def test_marks_that_several_tokens_spell_end_a_step() -> None:
    assert _ends(["a", "\n", "\n", "b\n", "c"], "\n\n") == [False, False, True, False, False]
    assert _ends(["a;", ";", "b"], ";") == [True, True, False]


def test_an_exact_guide_agrees_with_completions_of_cut_thoughts(model: str) -> None:
    """log w_1 of the posterior by enumeration, against completions; a guide that says nothing is off by log w itself."""
    run = loop(model, "helper", group_size=2)
    thoughts, policy, params = Thoughts(load_tokenizer(model)), run.models["policy"], SamplingParams(max_tokens=2)
    with torch.no_grad():
        for p in policy.parameters():  # so that thoughts matter
            p.mul_(1.7)
    actors = [LocalActors(run.engine, Walk(), str(i), i) for i in range(6)]
    groups = asyncio.run(draw_probes(thoughts, TASKS, actors, ProbePlan(600), params, GIVEN))
    asyncio.run(complete_cuts(thoughts, TASKS, actors, groups, 600, params))
    bed = Testbed(policy, thoughts.chat.tokenizer, Distribution(), 2, GIVEN)
    truth = []
    for group, task in zip(groups, TASKS, strict=True):
        for trace, values in zip(group.traces, score_traces(policy, group.traces), strict=True):
            trace.scores["policy"] = Score(values, 0)
        first, listed = of_kind(group, "drawn")[0], bed.case(task).listed
        z = first.token[first.kind == Kind.THOUGHT]
        assert len(of_kind(group, "completion")) == (600 if len(z) == 2 else 0)
        ratio = next(r for t, r in zip(listed.thoughts, listed.posterior_ratio(), strict=True) if np.array_equal(t, z))
        guide = first.scores["policy"].values.astype(np.float64)
        guide[first.where(Kind.THOUGHT)] += ratio
        first.scores["helper"] = Score(guide, 0)
        if len(z) == 2:
            truth.append(ratio[0])
    exact = cut_figures(groups, "helper")
    assert len(truth) > 2
    assert exact["w_error"] < 0.15 * max(np.abs(truth))
    assert exact["w_correlation"] > 0.95
    for group in groups:
        first = of_kind(group, "drawn")[0]
        first.scores["helper"] = first.scores["policy"]
    silent = cut_figures(groups, "helper")
    assert silent["w_error"] == pytest.approx(np.sqrt(np.mean(np.square(truth))), rel=0.15)
    assert "w_correlation" not in silent


def test_a_template_goes_before_the_mark_that_opens_the_thought() -> None:
    assert hinted("1 2", GIVEN, "5") == "1 2 given 5"
    assert hinted("1 2 <think>", GIVEN, "5") == "1 2 given 5 <think>"
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "{braces} stay"}]
    assert hinted(chat, "{prompt} given {answer}", "{5}") == [
        chat[0],
        {"role": "user", "content": "{braces} stay given {5}"},
    ]


def test_a_tokenizer_without_a_closing_mark_is_told(tmp_path: Path) -> None:
    plain = write_model(tmp_path / "m", ("a", "b"), family="gpt2", layers=1, width=16, heads=2, length=16, seed=0)
    with pytest.raises(ValueError, match="does not spell </think> as one token"):
        Thoughts(load_tokenizer(str(plain)))


def test_scores_of_the_helper_come_back_to_the_trace(model: str) -> None:
    """The helper reads another sequence; its scores stand at the thought's positions of the trace."""
    from algorithms.thoughts import reading_with_answer

    run = loop(model, "helper", group_size=2, first_steps=0)
    trace = run.collect(TASKS[:1], 0)[0].traces[0]
    values = score_traces(run.models["helper"], [trace], template=reading_with_answer)[0]
    trace.scores["helper"] = Score(values, 0)
    at = trace.where(Kind.THOUGHT)
    assert np.isfinite(values[at]).all()
    assert np.isnan(np.delete(values, at)).all()
