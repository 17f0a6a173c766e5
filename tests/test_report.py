"""The report: what it reads, what it survives, and what a real headless Chromium makes of it."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posterior.report import amount, duration, render, write_report
from posterior.report_data import MAX_GROUPS, MAX_POINTS, _spread, collect, group_runs
from posterior.rundir import RunDir

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
STAGES = {"wait": 1.1, "score": 0.1, "credit": 0.02, "forward_backward": 1.5, "optimiser": 0.2, "publish": 0.15}


def make_run(
    path: Path,
    name: str = "rlvr",
    seed: int = 0,
    steps: int = 40,
    rise: float = 0.4,
    finished: bool = True,
    text: str = "",
    **config: Any,
) -> Path:
    """A run directory with plausible numbers: two held-out splits, dumps every 20 steps, 4 groups of 6 traces."""
    dice = random.Random(seed)
    run = RunDir.create(name, path)
    run.write_config(
        {
            "name": name,
            "seed": seed,
            "model": {"path": "embedded", "dtype": "float32"},
            "env": {"name": "coding"},
            "algorithm": {"name": "rlvr", "advantage": "grpo"},
            "train": {"steps": 40},
            **config,
        }
    )
    measured: dict[str, list[dict[str, float]]] = {"test": [], "unseen": []}
    flops = 0.0
    for step in range(steps + 1):
        done = 1 - math.exp(-3 * step / 40)
        if step % 10 == 0:
            row: dict[str, Any] = {
                "kind": "eval",
                "step": step,
                "version": step,
                "seconds": 3.2 * step,
                "time/eval": 2.0,
            }
            for split, start, n in (("test", 0.28, 128), ("unseen", 0.2, 96)):
                p = start + rise * done * (1 if split == "test" else 0.7) + dice.gauss(0, 0.01)
                half = 1.96 * math.sqrt(p * (1 - p) / n)
                entry = {"pass@1": p, "low": p - half, "high": p + half, "n": n, "mean_grade": p + 0.1}
                measured[split].append(entry)
                row.update({f"eval/{split}/{key}": value for key, value in entry.items()})
            run.append_metrics(row)
            write_dump(run.traces / f"eval_{step:06d}_test.jsonl", step, done, dice, text)
        if step == steps:
            break
        if step % 20 == 0 or step == steps - 1:
            write_dump(run.traces / f"step_{step:06d}.jsonl", step, done, dice, text)
        flops += 2e10
        times = {f"time/{stage}": mean * dice.uniform(0.8, 1.3) for stage, mean in STAGES.items()}
        run.append_metrics(
            {
                "kind": "train",
                "step": step,
                "version": step,
                "seconds": 3.2 * (step + 1),
                "reward/mean": 0.35 + rise * done + dice.gauss(0, 0.05),
                "reward/std": 0.4,
                "pass_rate": 0.3 + rise * done + dice.gauss(0, 0.06),
                "grad_norm/policy": abs(dice.gauss(0.6, 0.15)),
                "loss/policy/policy_gradient": dice.gauss(0, 0.02),
                "gap/max": 10 ** dice.uniform(-5.6, -4.7),
                "gap/mean": 10 ** dice.uniform(-7, -6.5),
                "staleness/max": 1,
                "staleness/mean": dice.random(),
                "length/mean": 90 - 25 * done + dice.gauss(0, 2),
                "component/tests": 0.4 + rise * done,
                "component/format": 0.95,
                "policy/entropy": 0.9 - 0.5 * done + dice.gauss(0, 0.02),
                "tokens/per_second": dice.gauss(2400, 150),
                **times,
                "time/total": sum(times.values()) + 0.1,
                "flops/sampling": flops,
                "flops/learning": 3.2 * flops,
                "flops/eval": 0.4 * flops,
                "clip/high": dice.random() * 0.1,
            }
        )
    if finished:
        risen = measured["test"][-1]["pass@1"] - measured["test"][0]["pass@1"]
        run.write_result(
            {
                "name": name,
                "status": "finished",
                "steps": steps,
                "seconds": 3.2 * steps,
                "baseline": {split: entries[0] for split, entries in measured.items()},
                "final": {split: entries[-1] for split, entries in measured.items()},
                "gain": {"test": {"pass@1": risen, "low": risen - 0.08, "high": risen + 0.08}},
                "hardware": "2 CPU cores, 8 GB",
                "versions": {"torch": "2.13", "vllm": "0.32"},
            }
        )
    return run.path


def write_dump(path: Path, step: int, done: float, dice: random.Random, text: str = "", groups: int = 4) -> None:
    with open(path, "w") as file:
        for index in range(groups):
            prompt = f"Write a Python function f(xs) that returns the sum of the {index + 2} largest items. {text}"
            verdicts = [dice.random() < 0.3 + 0.5 * done for _ in range(6)]
            mean = sum(verdicts) / 6
            traces = []
            for i, passed in enumerate(verdicts):
                count = index + 2 + (not passed)
                thought = re.findall(
                    r"\s*\S+", f"<think>sort xs from large to small, then add the first {count}</think>"
                )
                action = re.findall(r"\s*\w+|\s*\W", f"\ndef f(xs):\n    return sum(sorted(xs)[-{count}:])\n{text}")
                n = len(thought) + len(action)
                logprob = [-dice.expovariate(2.5) for _ in range(n)]
                noise = [dice.gauss(0, 1) * 10 ** dice.uniform(-7, -4) for _ in range(n)]
                traces.append(
                    {
                        "episode": f"{step}-{index}-{i}",
                        "tokens": [prompt, *thought, *action],
                        "kind": [0] + [1] * len(thought) + [3] * len(action),
                        "turn": [0] * (n + 1),
                        "logprob": [None, *logprob],
                        "learner_logprob": [None, *(a + b for a, b in zip(logprob, noise, strict=True))],
                        "advantage": [None] + [(passed - mean) / 0.48] * n,
                        "reward": float(passed) * 0.9 + 0.1,
                        "components": {"tests": 1.0 if passed else 0.4, "format": 1.0},
                        "note": "" if passed else f"test 3: f([5, 1, 4]) gave 10, expected 9 {text}",
                        "passed": passed,
                        "outcome": "infra" if i == 5 and index == 3 else "ok",
                        "version": step,
                    }
                )
            group = {"step": step, "index": step * 4 + index, "task": f"top-sum/{index + 2}", "prompt": prompt}
            file.write(json.dumps({**group, "answer": f"def f(xs): ... {text}", "traces": traces}) + "\n")


# ---- reading


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 10, 100])
def test_spread_visits_all_last_and_first_before_the_middle(count: int) -> None:
    order = _spread(count)
    assert sorted(order) == list(range(count))
    assert order[:2] == ([count - 1, 0] if count > 1 else [0] * count)


def test_runs_that_differ_only_in_their_seed_are_one_group() -> None:
    def run(name: str, seed: int, **config: Any) -> dict[str, Any]:
        return {"name": name, "config": {"name": name, "seed": seed, **config}}

    runs = [run("a-seed0", 0), run("a-seed1", 1), run("b", 0, lr=1), run("b", 1, lr=2), run("a-20260101-101010", 4)]
    groups = group_runs([*runs, {"name": "a", "config": {}}])
    assert [group["runs"] for group in groups] == [[0, 1, 4], [2], [3], [5]]
    assert [group["name"] for group in groups[1:3]] == ["b (lr=1)", "b (lr=2)"]


def test_a_run_in_progress_takes_its_headline_from_the_rows(tmp_path: Path) -> None:
    run = collect([RunDir.open(make_run(tmp_path / "r", steps=25, finished=False))])["runs"][0]
    entry = run["headline"][0]
    assert (run["status"], entry["split"], entry["steps"]) == ("in progress", "test", [20])
    assert entry["gain"]["low"] < entry["gain"]["p"] < entry["gain"]["high"]


def test_damage_is_said_and_survived(tmp_path: Path) -> None:
    path = make_run(tmp_path / "r", finished=False, steps=12)
    run = RunDir(path)
    with open(run.metrics, "a") as file:
        file.write(
            '{"kind": "train", "step": 12, "reward/mean": NaN, "entropy": Infinity, "flag": true}\noops\n{"kind": "tr'
        )
    run.result.write_text("{")
    run.config.write_text("a: [")
    (run.traces / "step_000099.jsonl").write_text('[1]\n{"traces": 3}\n{"traces": [{"tokens": ["x"]}, 7]}\n{"tr')
    (run.traces / "notes.txt").write_text("not a dump")
    (loaded,) = collect([run])["runs"]
    said = " ".join(loaded["notes"])
    for words in (
        "result.json could not",
        "config.yaml could not",
        "metrics.jsonl: 1 line ",
        "last line is cut",
        "reward/mean is",
    ):
        assert words in said
    assert loaded["train"]["metrics"]["reward/mean"][-1] is None
    assert "flag" not in loaded["train"]["metrics"]
    assert len(loaded["dumps"][-1]["groups"]) == 2
    assert write_report([path]).exists()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_an_almost_empty_run_has_a_report(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    page = write_report([tmp_path]).read_text()
    assert "not evaluated yet" in page
    assert "no row yet" in page


def test_no_runs_and_wrong_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write_report([])
    with pytest.raises(FileNotFoundError, match="not a run directory"):
        write_report([tmp_path])


def test_long_runs_are_thinned_and_keep_their_peaks(tmp_path: Path) -> None:
    run = RunDir.create("long", tmp_path / "r")
    steps = 4 * MAX_POINTS
    rows = [
        {
            "kind": "train",
            "step": s,
            "gap/max": float(s == 1001),
            "gap/mean": float(s == 1001),
            "flops/a": s,
            "flops/eval": 7.0,
        }
        for s in range(steps)
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (loaded,) = collect([run])["runs"]
    train = loaded["train"]
    assert len(train["step"]) == MAX_POINTS
    assert max(train["metrics"]["gap/max"]) == 1.0
    assert max(train["metrics"]["gap/mean"]) == 0.25
    assert train["flops"][-1] == steps - 1
    assert any("mean of 4 steps" in note for note in loaded["notes"])


def test_huge_traces_are_cut_and_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_run(tmp_path / "r", steps=40)
    write_dump(path / "traces" / "step_000030.jsonl", 30, 0.5, random.Random(0), groups=MAX_GROUPS + 5)
    monkeypatch.setattr("posterior.report_data.MAX_TRACE_BYTES", 100_000)
    monkeypatch.setattr("posterior.report_data.MAX_TOKENS", 20)
    (run,) = collect([RunDir.open(path)])["runs"]
    assert 80_000 < len(json.dumps(run["dumps"])) < 110_000
    assert any("shown in part" in note for note in run["notes"])
    assert any("up to position 20" in note for note in run["notes"])
    assert (
        sum(len(segment.get("tokens", [1])) for segment in run["dumps"][0]["groups"][0]["traces"][0]["segments"]) == 20
    )


def test_of_one_enormous_group_some_traces_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posterior.report_data.MAX_TRACE_BYTES", 5_000)
    (run,) = collect([RunDir.open(make_run(tmp_path / "r", steps=1))])["runs"]
    group = run["dumps"][0]["groups"][0]
    assert 1 <= len(group["traces"]) < 6
    assert group["left_out"] == 6 - len(group["traces"])
    assert any("shown in part" in note for note in run["notes"])


def test_stages_are_the_loops_own_and_evaluation_has_its_share(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    run.append_metrics({"kind": "eval", "step": 0, "version": 0, "time/eval": 5.0})
    for step in range(4):
        times = {"time/wait": 1.0, "time/grading": 3.0 * step, "time/publish": 0.5, "time/total": 2.0}
        run.append_metrics({"kind": "train", "step": step, "version": step + 1, **times})
    run.append_metrics({"kind": "eval", "step": 4, "version": 4, "time/eval": 3.0})
    (loaded,) = collect([run])["runs"]
    assert loaded["stages"] == {"wait": 4.0, "publish": 2.0, "eval": 8.0, "other": 2.0}
    assert loaded["train"]["metrics"]["time/eval"] == [5.0, 0.0, 0.0, 3.0]
    assert loaded["train"]["metrics"]["time/total"] == [7.0, 2.0, 2.0, 5.0]


def test_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    for reward in (0.1, 0.9):
        run.append_metrics({"kind": "train", "step": 0, "reward/mean": reward})
    assert collect([run])["runs"][0]["train"]["metrics"]["reward/mean"] == [0.9]


def test_numbers_as_people_write_them() -> None:
    assert [duration(s) for s in (None, 3.21, 42.4, 252, 11100)] == ["–", "3.21 s", "42 s", "4 min 12 s", "3 h 05 min"]
    assert [amount(v) for v in (None, 12, 2380.0, 3.68e12)] == ["–", "12", "2.38 k", "3.68 T"]


# ---- the page, in a real browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Open an address headless and return the DOM after its scripts ran; fails on any console message."""
    program = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
    if program is None:
        pytest.fail("The report's tests need a browser: install the package chromium.")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=4000"
    flags += " --window-size=1280,1000 --dump-dom"

    def dump(address: str) -> str:
        profile = tmp_path_factory.mktemp("profile")
        command = [str(program), *flags.split(), f"--user-data-dir={profile}", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    return dump


def driven(page: Path, script: str) -> str:
    """Address of a copy of the page that also runs `script` after its own (so without its content policy)."""
    copy = page.with_name(f"driven-{page.name}")
    text = re.sub(r"<meta http-equiv=[^>]+>", "", page.read_text())
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    return copy.as_uri()


PRESS = "const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([make_run(tmp_path_factory.mktemp("runs") / "r")])


def test_headline_curves_and_stages(single: Path, chromium: Callable[[str], str]) -> None:
    dom = chromium(single.as_uri())
    result = json.loads((single.parent / "result.json").read_text())
    for split in ("test", "unseen"):
        for when in ("baseline", "final"):
            assert f"{100 * result[when][split]['pass@1']:.1f}\u202f%" in dom
    assert f"+{100 * result['gain']['test']['pass@1']:.1f} points" in dom
    lines = re.findall(r'<path class="line" d="([^"]+)"', dom)
    assert len(lines) == 2 + 6 + 2 * 3  # two splits, six charts of one series, three of two
    assert sum(path.count("L") == 4 for path in lines) == 2  # five evaluations
    assert sum(path.count("L") == 39 for path in lines) == 12  # forty steps
    assert dom.count('class="band"') == 2
    assert not re.search(r' d="[^"]*(NaN|undefined|Infinity)', dom)
    assert "forward and backward" in dom
    assert "FLOPs by stage" in dom
    assert dom.count('class="column"') == 40


def test_nothing_is_fetched(single: Path) -> None:
    page = single.read_text()
    assert "default-src 'none'" in page
    assert not re.search(
        r"https?:|//[\w.-]+\.\w|\bsrc\s*=|<link|@import|url\(|fetch\(|XMLHttp|import\(|WebSocket", page
    )


def test_a_link_opens_its_group(single: Path, chromium: Callable[[str], str]) -> None:
    dom = chromium(f"{single.as_uri()}#group=1&colour=gap&show=failed")
    article = dom[dom.index('<article id="group"') : dom.index("</article>")]
    assert 'data-group="1"' in article
    assert "top-sum/3" in article
    assert 'class="tok gap"' in article
    assert "✗ failed" in article
    assert "✓ passed" not in article
    assert chromium(f"{single.as_uri()}#group=100000").count("data-group=") == 1


def test_keys_walk_groups_dumps_colours_and_tokens(single: Path, chromium: Callable[[str], str]) -> None:
    first = "const first = Number(document.getElementById('group').dataset.group);"
    walk = """press('k'); press('j'); press('j'); press('c');
    const body = document.querySelector('.body'); body.focus();
    for (const key of ['ArrowRight', 'ArrowRight', 'ArrowRight']) body.dispatchEvent(new KeyboardEvent('keydown', {key}));
    document.title = JSON.stringify([Number(document.getElementById('group').dataset.group) - first, location.hash,
      document.getElementById('tip').textContent, document.querySelector('.here').textContent,
      document.getElementById('dump').selectedOptions[0].textContent]);"""
    dom = chromium(driven(single, PRESS + first + walk))
    moved, link, tip, here, dump = json.loads(re.search(r"<title>(.*?)</title>", dom)[1].replace("&amp;", "&"))  # type: ignore[index]
    assert moved == 1
    assert "colour=gap" in link
    assert here == " from"
    assert all(word in tip for word in ("position", "advantage", "log-prob", "learner − sampler"))
    assert dump == "step 39"


def test_hovering_a_curve_shows_its_numbers(single: Path, chromium: Callable[[str], str]) -> None:
    script = """const svg = document.querySelector('#evaluations svg'); const box = svg.getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.right - 20, clientY: box.top + 40, bubbles: true}));
    document.title = document.getElementById('tip').textContent;"""
    final = json.loads((single.parent / "result.json").read_text())["final"]["test"]
    title = re.search(r"<title>(.*?)</title>", chromium(driven(single, script)))
    assert title is not None
    assert title[1].startswith("step 40")
    assert f"{100 * final['pass@1']:.1f}" in title[1]
    assert " [" in title[1]


def test_every_control_redraws(single: Path, chromium: Callable[[str], str]) -> None:
    script = """document.getElementById('more').open = true;
    for (const value of ['seconds', 'flops', 'step']) document.querySelector(`#axis input[value=${value}]`).click();
    document.getElementById('smooth').value = 0; document.getElementById('smooth').dispatchEvent(new Event('input'));
    for (const option of document.getElementById('dump').options) { option.selected = true;
      document.getElementById('dump').dispatchEvent(new Event('change')); }"""
    dom = chromium(driven(single, script))
    assert 'data-key="clip/high"' in dom
    assert 'data-key="eval/test/mean_grade"' in dom
    assert 'class="line faint"' not in dom
    assert "test, version 40" in dom


def test_hostile_text_stays_text(tmp_path: Path, chromium: Callable[[str], str]) -> None:
    path = make_run(tmp_path / "r", name=f"x{HOSTILE}", steps=3, text=f"{HOSTILE}\ud800", finished=False)
    page = write_report([path])
    assert page.read_text().lower().count("</script") == 2
    for address in (page.as_uri(), driven(page, "")):  # with its content policy and without
        dom = chromium(address)
        assert "<img" not in dom
        assert "<title>owned" not in dom
        assert "onerror=" in dom.replace("&quot;", '"')  # shown, as text
        assert "data-group" in dom


def test_several_runs_lie_over_each_other(tmp_path: Path, chromium: Callable[[str], str]) -> None:
    runs = [make_run(tmp_path / f"a{seed}", "rlvr", seed, steps=20 + 5 * seed) for seed in range(3)]
    runs.append(make_run(tmp_path / "b", "shuffled", 7, rise=0.0, steps=20))
    page = write_report(runs, tmp_path / "both.html")
    assert page == tmp_path / "both.html"
    script = "document.querySelectorAll('#legend button')[1].click(); document.getElementById('time-run').value = 2;"
    script += "document.getElementById('time-run').dispatchEvent(new Event('change'));"
    dom, hidden = chromium(page.as_uri()), chromium(driven(page, script))
    assert "2 configurations compared" in dom
    assert "mean of 3 seeds" in dom
    reward = re.search(r'data-key="Training reward".*?</figure>', dom, re.S)
    assert reward is not None
    assert re.findall(r'data-series="([^"]+)"', reward[0]) == ["rlvr", "shuffled"]
    assert reward[0].count('class="band"') == 1
    rlvr = re.search(r'class="line" d="([^"]+)"[^>]*data-series="rlvr"', reward[0])
    assert rlvr is not None
    assert rlvr[1].count("L") == 19  # the steps that all three seeds have reached
    assert 'data-series="shuffled"' not in hidden
    assert dom.count("<details><summary>rlvr, seed") == 3
    assert dom.count('<optgroup label="rlvr, seed 1: ') == 2


def test_turns_latents_and_gaps_in_the_data(tmp_path: Path, chromium: Callable[[str], str]) -> None:
    run = RunDir.create("agent", tmp_path / "r")
    for step in range(30):
        run.append_metrics(
            {"kind": "train", "step": step, "reward/mean": math.nan if step == 10 else 0.5, "gap/max": 0.0}
        )
    trace = {
        "tokens": ["ask", "<latent>", "<latent>", "move", "see", "then", "done", "given"],
        "kind": [0, 2, 2, 3, 0, 1, 3, 4],
        "turn": [0, 0, 0, 0, 1, 1, 1, 1],
        "logprob": [None, None, -0.5, -1, None, -0.1, -20, None],
        "learner_logprob": [None, None, -0.5, -1.5, None, -0.1],
        "advantage": [None, 0.0, 0.0, -2, None, 1, 2, None],
        "reward": None,
    }
    group = {"task": "t", "prompt": "ask", "answer": None, "traces": [trace] * 20}
    (run.traces / "step_000002.jsonl").write_text(json.dumps(group) + "\n")
    script = "document.querySelector('.more').click();"
    dom = chromium(driven(write_report([run.path]), script))
    assert dom.count(">◆<") == 40
    for label in ("latent, turn 1", "answer, turn 1", "observation, turn 2", "thought, turn 2", "target, turn 2"):
        assert label in dom
    assert 'class="tok neg" style="--w: 60%;"' in dom
    path = re.search(r'class="line" d="([^"]+)"[^>]*data-series="training reward"', dom)
    assert path is not None
    assert path[1].count("M") == 2  # a missing value is a gap, not a bridge


def test_render_does_not_expand_placeholders_in_the_data(tmp_path: Path) -> None:
    run = RunDir.create("x", tmp_path / "r")
    run.write_config({"name": "{{script}}"})
    assert "{{script}}" in render(collect([run]))
