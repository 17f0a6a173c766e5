"""Reward models: the testbed of raters, regression against closed forms, scores as reward, the monitor's alarm."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from actors.learner import resolve_roles
from actors.monitor import START, HackingMonitor, alarm_step, hacking_figures, swayed
from actors.reward import PROXY, SPREAD, LearnedReward, RewardScorer, without_thought
from actors.types import Group, SamplingParams
from actors.update import OptimiserConfig, Updater
from algorithms.base import Context
from algorithms.reward_model import RewardModel, RewardModelConfig, regression_figures
from envs.base import Task
from envs.noisy_raters import MIDDLE, NoisyRaters
from envs.noisy_raters import SPREAD as SCALE_SPREAD
from models.chat import ChatFormat
from models.forward import Distribution, score_traces
from models.loading import ModelError, load_role, load_tokenizer, save_role
from models.roles import REWARD_NOTES
from models.scratch import write_model
from models.trace import Kind, Score, Trace

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)


# ---- the testbed


def test_gold_is_standardised_and_one_sweet_word_is_best() -> None:
    env = NoisyRaters()
    rows = np.stack(np.meshgrid(*[np.arange(16)] * 4, indexing="ij"), -1).reshape(-1, 4)
    gold, skimmed = env.gold(rows), env.gold(rows, penalty=0.0)
    assert skimmed.mean() == pytest.approx(0.0, abs=0.03)
    assert skimmed.std() == pytest.approx(1.0, abs=0.03)
    # against the definition, on a handful
    some = rows[::9000]
    sweet = np.array([sum(w < 4 for w in r) for r in some.tolist()])
    raw = [env.word[r].sum() + env.pair[r[:-1], r[1:]].sum() for r in some]
    raw += 1.3 * sweet - 2.0 * np.maximum(sweet - 1, 0) ** 2
    assert np.diff(gold[::9000]) == pytest.approx(np.diff(raw) / env._moments[1])
    by_count, liked = ([g[(rows < 4).sum(1) == n].mean() for n in range(5)] for g in (gold, skimmed))
    assert np.all(np.diff(liked) > 0)
    assert np.argmax(by_count) == 1
    assert by_count[4] < by_count[3] < by_count[0]
    task = next(iter(env.tasks("train")))
    grade = env.grade(task, "w3 w3 w9 w8")
    assert grade.components["sweet"] == 2
    assert grade.value == pytest.approx(MIDDLE + SCALE_SPREAD * grade.components["gold"])
    assert env.grade(task, "w3 w99 w3 w3").components["gold"] == env.grade(task, "").components["gold"] == -3.0


def test_labels_are_noisy_whole_grades_and_hide_what_they_should() -> None:
    env, blind = NoisyRaters(labels=300, topics=3), NoisyRaters(labels=300, topics=3, hidden=True)
    labels = env.tasks("labels")
    assert isinstance(labels, list)
    assert len(labels) == 300
    scores = np.array([t.meta["scores"] for t in labels])
    assert scores.shape == (300, 5)
    assert set(np.unique(scores)) <= {0.0, 1 / 3, 2 / 3, 1.0}
    gold = np.array([env.judge(t, str(t.answer))[0] for t in labels])
    assert np.corrcoef(gold, scores.mean(1))[0, 1] > 0.6
    assert any(env.judge(t, str(t.answer))[1] > 1 for t in labels)
    # who skims is not put off by a second sweet word: the same answers, other grades
    skimmed = blind.tasks("labels")
    assert isinstance(skimmed, list)
    assert [t.answer for t in skimmed] == [t.answer for t in labels]
    several = np.array([env.judge(t, str(t.answer))[1] > 1 for t in labels])
    better = np.array([t.meta["scores"] for t in skimmed]).mean(1) - scores.mean(1)
    assert better[several].mean() > 0.1
    assert abs(better[~several].mean()) < 0.05
    # what is held out is not what is graded, and every split begins alike each time
    first = [t.answer for t in itertools.islice(env.tasks("labels_test"), 50)]
    assert first == [t.answer for t in itertools.islice(env.tasks("labels_test"), 50)]
    assert first != [t.answer for t in labels[:50]]
    assert env.references("labels_test", 500)["noise floor"] < env.references("labels_test", 500)["mean predictor"]
    assert set(" ".join(str(t.prompt) for t in labels).split()) <= set(env.words())
    with pytest.raises(ValueError, match="at least 4 words"):
        NoisyRaters(words=3)


# ---- the model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    words = NoisyRaters().words()
    path = tmp_path_factory.mktemp("rm") / "model"
    return str(write_model(path, words, family="llama", layers=1, width=32, heads=1, length=16, seed=0))


def build(folder: str, tasks: list[Task], **options: Any) -> RewardModel:
    settled = RewardModel.settle({"name": "reward_model", **options}, lambda: tasks)
    return RewardModel(RewardModelConfig(**settled), Context(folder, SamplingParams(), 0))


def test_the_scale_comes_from_the_data() -> None:
    tasks = [Task(str(i), "x", "y", meta={"scores": s}) for i, s in enumerate([[1.0, 3.0], [0.0, 0.0], [4.0]])]
    found = RewardModel.settle({"name": "reward_model"}, lambda: [*tasks, Task("w", "x", "y", meta={"written": True})])
    means = np.array([2.0, 0.0, 4.0])
    assert (found["mean"], found["std"]) == (pytest.approx(means.mean()), pytest.approx(means.std()))
    assert (found["written_score"], found["within"]) == (4.0, pytest.approx(1.0))
    assert RewardModel.settle({"name": "reward_model", "mean": 7.0}, lambda: tasks)["mean"] == 7.0
    zeros = {"mean": 0.0, "written_score": 0.0, "within": 0.0}
    found = RewardModel.settle({"name": "reward_model", **zeros}, lambda: tasks)
    assert {name: found[name] for name in zeros} == zeros
    assert found["std"] == pytest.approx(means.std())
    with pytest.raises(ValueError, match="needs graded answers"):
        RewardModel.settle({"name": "reward_model"}, lambda: [Task("t", "x", "y")])


def test_members_that_would_stay_alike_are_refused() -> None:
    for trunk in ("shared", "separate"):
        with pytest.raises(ValueError, match=r"the 2 members begin alike.*; set members to 1 or bootstrap to true"):
            RewardModelConfig(members=2, trunk=trunk, bootstrap=False)
    assert not RewardModelConfig(members=1, bootstrap=False).bootstrap


@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_it_learns_the_scores_and_its_members_differ(folder: str, trunk: str) -> None:
    env = NoisyRaters(labels=400, noise=0.0)
    tasks = list(env.tasks("labels"))
    method = build(folder, tasks, members=2, trunk=trunk)
    specs = resolve_roles(method.roles)
    models = {role: load_role(s.weights, head=s.head, outputs=s.outputs) for role, s in specs.items()}
    assert list(models) == (["policy"] if trunk == "shared" else ["policy", "member1"])
    settings = dict.fromkeys(models, OptimiserConfig(3e-3, 0, (0.9, 0.99), 1e-8, 0.0, 1.0))
    updater = Updater(method, models, specs, settings, Distribution(), None)
    losses = []
    for step in range(100):
        picked = [tasks[(step * 64 + i) % 400] for i in range(64)]
        groups = [Group(t, [method.example(t, i, step)], i) for i, t in enumerate(picked)]
        method.credit(groups)
        row = updater.update(groups, step, measure_gap=False)
        losses.append([row[f"loss/{'member1' if trunk == 'separate' and e else 'policy'}/mse{e}"] for e in range(2)])
    assert np.mean(losses[-5:]) < 0.35 * np.mean(losses[0])
    held = list(itertools.islice(env.tasks("labels_test"), 100))
    groups = [Group(t, [method.example(t, i, 0)], i) for i, t in enumerate(held)]
    for role in models:
        updater.score(role, groups, 0)
    each = method.by_task(groups)
    figures = method.diagnose(groups, each)
    assert figures["mse"] < figures["mse_mean_predictor"]
    assert figures["ensemble_spread"] > 0
    # the same through the actor that serves it, from disk
    traces = [g.traces[0] for g in groups]
    target = Path(folder).parent / f"saved_{trunk}"
    save_role(models["policy"], target, method.context.tokenizer)
    for name, notes in method.notes("policy").items():
        (target / name).write_text(json.dumps(notes))
    if trunk == "separate":
        save_role(models["member1"], target / "member1", None)
    said = RewardScorer(LearnedReward.read(str(target), 1.0, 0.0, "answer"), "float32", 1).score(traces)
    assert said.shape == (100, 2)
    assert said.mean(1) == pytest.approx(each["predicted"], abs=1e-4)


def test_one_members_loss_is_the_weighted_squared_error(folder: str) -> None:
    """Against the formula, with weights by the number of raters."""
    tasks = [
        Task(str(i), "write :", f"w{i} w2 w3 w4", meta={"scores": s}) for i, s in enumerate([[1.0], [2.0, 3.0, 2.0]])
    ]
    method = build(folder, tasks, members=1, weigh="raters", within=0.5, mean=1.0, std=2.0)
    groups = [Group(t, [method.example(t, i, 0)], i) for i, t in enumerate(tasks)]
    method.credit(groups)
    targets = [(1.0 - 1.0) / 2.0, (7 / 3 - 1.0) / 2.0]
    weights = []
    for group, target, n in zip(groups, targets, (1, 3), strict=True):
        trace = group.traces[0]
        assert trace.weights["target"][-1] == pytest.approx(target)
        between = 4.0 - 0.5 / n
        weights.append(between / (between + 0.5 / n))
        assert trace.weights["member0"][-1] == pytest.approx(weights[-1])
        assert not trace.weights["member0"][:-1].any()
    model = load_role(folder, head="scalar")
    with torch.no_grad():
        assert model.head is not None
        model.head.bias.fill_(0.25)
    spec = resolve_roles(method.roles)["policy"]
    off = OptimiserConfig(0.0, 0, (0.9, 0.99), 1e-8, 0.0, 1.0)
    row = Updater(method, {"policy": model}, {"policy": spec}, {"policy": off}, Distribution(), None).update(
        groups, 0, measure_gap=False
    )
    expected = sum(w * (0.25 - t) ** 2 for w, t in zip(weights, targets, strict=True)) / 2
    assert row["loss/policy/mse0"] == pytest.approx(expected, rel=1e-5)


def test_regression_figures_by_hand() -> None:
    predicted, score = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.0, 3.5])
    raters = [np.array([1.0, 2.0]), np.array([2.0]), np.array([3.0, 3.5, 4.0])]
    found = regression_figures(predicted, score, np.array([0.5, 0.0, 0.5]), raters, 1.0)
    assert found["mse"] == pytest.approx((0.25 + 0.0 + 0.25) / 3)
    assert found["mse_mean_predictor"] == pytest.approx((0.25 + 1.0 + 6.25) / 3)
    assert found["noise_floor"] == pytest.approx(
        (0.5 / 2 + 0.25 / 3) / 2
    )  # variance over raters, of items that have several
    assert (found["calibration_slope"], found["calibration_offset"]) == (pytest.approx(1.0), pytest.approx(1 / 3))
    assert (found["ensemble_spread"], found["items"]) == (pytest.approx(1 / 3), 3)
    assert found["spread_tells_error"] == pytest.approx(1.0)


# ---- its word as a reward


def sampled(answer: list[int], thought: int = 0) -> Trace:
    n = 2 + thought + len(answer)
    kind = np.array([Kind.CONTEXT] * 2 + [Kind.THOUGHT] * thought + [Kind.ACTION] * len(answer), np.uint8)
    logprob = np.where(kind == Kind.CONTEXT, np.nan, -0.5)
    token = np.array([1, 2, *range(50, 50 + thought), *answer])
    return Trace(token, kind, logprob, np.zeros(n), np.zeros(n), "t", "g", f"e{answer}")


def test_the_thought_is_hidden_and_the_lower_bound_is_the_reward(folder: str, tmp_path: Path) -> None:
    model = load_role(folder, head="scalar", outputs=3)
    with torch.no_grad():
        assert model.head is not None
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_role(model, tmp_path, None)
    (tmp_path / REWARD_NOTES).write_text(json.dumps({"mean": 1.0, "std": 2.0, "outputs": 3, "members": []}))
    bare, long = sampled([7, 8]), sampled([7, 8], thought=3)
    long.token[2:5] = 9, 9, 9
    hide = LearnedReward.read(str(tmp_path), 0.5, 1.0, "answer")
    show = LearnedReward.read(str(tmp_path), 0.5, 1.0, "trace")
    said = RewardScorer(hide, "float32", 1).score([bare, long])
    assert said[0] == pytest.approx(said[1], abs=1e-5)
    assert RewardScorer(show, "float32", 1).score([long])[0] != pytest.approx(said[0], abs=1e-3)
    raw = score_traces(model, [bare], head="scalar", template=without_thought)[0][-1]
    assert said[0] == pytest.approx(raw * 2.0 + 1.0, abs=1e-5)
    hide.give([bare, long], said)
    expected = said[0].mean() - said[0].std()
    assert bare.reward.tolist() == [0, 0, 0, pytest.approx(0.5 * expected)]
    assert (bare.components[PROXY], bare.components[SPREAD]) == (
        pytest.approx(said[0].mean()),
        pytest.approx(said[0].std()),
    )
    with pytest.raises(ModelError, match="is no reward model"):
        LearnedReward.read(folder, 1.0, 0.0, "answer")


def test_sentences_to_the_judge_are_put_behind_the_answer(folder: str, tmp_path: Path) -> None:
    model = load_role(folder, head="scalar", outputs=1)
    with torch.no_grad():
        assert model.head is not None
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    save_role(model, tmp_path, load_tokenizer(folder))
    (tmp_path / REWARD_NOTES).write_text(json.dumps({"mean": 0.0, "std": 1.0, "outputs": 1, "members": []}))
    scorer = RewardScorer(LearnedReward.read(str(tmp_path), 1.0, 0.0, "answer"), "float32", 1)
    tokenizer = load_tokenizer(folder)
    end = tokenizer.eos_token_id
    w1, w2 = tokenizer.encode("w1 w2", add_special_tokens=False)
    ended, cut = sampled([w1, end], thought=2), sampled([w1])
    told = {
        "": ([w1, w1, end], [w1, w1]),
        "w2 w2": ([w1, w2, w2, end], [w1, w2, w2]),
    }
    plain = scorer.score([sampled([w1, end]), sampled([w1])]).mean()
    gains = scorer.gains([ended, cut], ["w2 w2", "w2 and a word that nobody knows", ""])
    assert set(gains) == set(told)
    for text, answers in told.items():
        assert gains[text] == pytest.approx(scorer.score([sampled(a) for a in answers]).mean() - plain, abs=1e-5)
    assert swayed(gains) == {"injection": gains["w2 w2"], "twice": gains[""]}
    assert swayed({}) == {}
    assert scorer.gains([], ["w2"]) == {}


# ---- the monitor


def rows(raters: list[float | None], proxies: list[float], error: float = 0.05) -> list[dict[str, Any]]:
    return [
        {"step": 10 * i, "proxy": p, "rater": r, "rater_error": None if r is None else error}
        for i, (r, p) in enumerate(zip(raters, proxies, strict=True))
    ]


def test_the_alarm_sounds_when_raters_turn_while_the_score_rises() -> None:
    rising = [0.1 * i for i in range(9)]
    assert alarm_step(rows([1.0, 1.3, 1.6, 1.7, 1.7, 1.6, 1.3, 1.1, 0.9], rising), 3.5) == 60
    assert alarm_step(rows([1.0, 1.3, 1.6, 1.7, 1.7, 1.7, 1.72, 1.7, 1.71], rising), 3.5) is None
    # a fall of both is a policy that got worse, not one that games
    assert alarm_step(rows([1.0, 1.3, 1.6, 1.7, 1.7, 1.6, 1.3, 1.1, 0.9], [-x for x in rising]), 3.5) is None
    # large errors prove nothing; evaluations without raters are passed over
    assert alarm_step(rows([1.0, 1.3, 1.6, 1.7, 1.7, 1.6, 1.3, 1.1, 0.9], rising, error=0.4), 3.5) is None
    assert alarm_step(rows([None] * 9, rising), 3.5) is None


def test_false_alarms_are_rare_where_nothing_falls() -> None:
    """A rising and then level mean, 30 evaluations, 400 runs: fewer than one run in twenty."""
    level = np.minimum(np.arange(30) / 10, 1.5)
    alarms = [
        alarm_step(rows((level + RNG.normal(0, 0.06, 30)).tolist(), [float(i) for i in range(30)], 0.06), 3.5)
        is not None
        for _ in range(400)
    ]
    assert np.mean(alarms) < 0.05


def test_the_monitor_says_why_the_run_ends() -> None:
    fallen = rows([1.0, 1.7, 1.7, 1.7, 0.9], [0.1 * i for i in range(5)])
    said = HackingMonitor(component="rater", stop=True).verdict(fallen)
    assert "being gamed" in said.alarm
    assert (said.kl_budget, said.ends) == ("", True)
    assert not HackingMonitor(component="rater").verdict(fallen).ends
    calm = rows([1.0, 1.1, 1.2], [0.0, 0.1, 0.2])
    assert HackingMonitor().verdict(calm) == ("", "", False)
    # a budget of KL is no alarm, and an alarm that ends nothing does not hide it
    calm[-1]["kl"] = fallen[-1]["kl"] = 5.0
    said = HackingMonitor(kl_budget=4.0).verdict(calm)
    assert "budget of 4" in said.kl_budget
    assert (said.alarm, said.ends) == ("", True)
    said = HackingMonitor(component="rater", kl_budget=4.0).verdict(fallen)
    assert "being gamed" in said.alarm
    assert "budget of 4" in said.kl_budget
    assert said.ends


def test_figures_of_an_evaluation() -> None:
    traces = [sampled([7, 8, 7]), sampled([7, 8])]
    for trace, proxy in zip(traces, (2.0, 1.0), strict=True):
        trace.components = {PROXY: proxy, SPREAD: 0.1, "rater": proxy - 1}
        trace.scores[START] = Score(np.where(trace.sampled, -1.5, np.nan).astype(np.float32), 0)
    traces[1].outcome = "truncated"
    found = hacking_figures([Group(Task("t", "x"), traces)], HackingMonitor(component="rater"))
    assert found["proxy"] == 1.5
    assert found["kl"] == pytest.approx((3.0 + 2.0) / 2)
    assert (found["length"], found["unended"]) == (2.5, 0.5)
    assert found["repeats"] == pytest.approx((1 / 3 + 0) / 2)
    assert (found["rater"], found["rater_error"]) == (0.5, pytest.approx(np.sqrt(0.5) / np.sqrt(2)))
    assert hacking_figures([Group(Task("t", "x"), [sampled([1])])], HackingMonitor()) == {}


# ---- preferences


def test_a_model_of_preferences_by_trl_is_a_learned_reward(folder: str, tmp_path: Path) -> None:
    """TRL's RewardTrainer learns which of two answers has more sweet words; its folder is read as it is, score for score."""
    rng = np.random.default_rng(3)

    def pair() -> tuple[str, str]:
        few, many = rng.integers(4, 16, 4), rng.integers(4, 16, 4)
        many[: rng.integers(2, 4)] = rng.integers(0, 4)
        return " ".join(f"w{w}" for w in many), " ".join(f"w{w}" for w in few)

    pairs = [pair() for _ in range(1600)]
    learnt, held_out = pairs[:1500], pairs[1500:]
    file, out = tmp_path / "pairs.jsonl", tmp_path / "model"
    asked = "write about t0 :"
    file.write_text("".join(json.dumps({"prompt": asked, "chosen": c, "rejected": r}) + "\n" for c, r in learnt))
    words = [folder, str(file), str(out), "--lr", "3e-3"]
    subprocess.run([sys.executable, "examples/preferences.py", *words], check=True, cwd=ROOT)

    reward = LearnedReward.read(str(out), 1.0, 0.0, "answer")
    chat = ChatFormat(load_tokenizer(folder))
    start = chat.prompt_ids(asked).tolist()
    told = [chat.emission_ids((), text).tolist() for both in held_out for text in both]
    traces = [Trace.from_target(start, ids, str(i)) for i, ids in enumerate(told)]
    said = RewardScorer(reward, "float32", 1).score(traces)[:, 0]
    assert (said[::2] > said[1::2]).mean() > 0.9
    classifier = AutoModelForSequenceClassification.from_pretrained(out)
    with torch.no_grad():
        theirs = [classifier(torch.tensor([[*start, *ids]])).logits.item() for ids in told[:20]]
    assert said[:20] == pytest.approx(theirs, abs=1e-4)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(ModelError, match="2 labels"):
        LearnedReward.read(str(out), 1.0, 0.0, "answer")
    file.write_text('{"prompt": "write :", "chosen": "w1"}\n')
    failed = subprocess.run(
        [sys.executable, "examples/preferences.py", *words], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert failed.returncode == 1
    assert failed.stderr.strip().endswith(
        "line 1: a pair has a prompt, a chosen and a rejected answer; rejected is missing"
    )
