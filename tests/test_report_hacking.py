"""The report's section "Is the reward being gamed?"."""

from __future__ import annotations

from pathlib import Path

from posterior.report import write_report
from posterior.rundir import RunDir

GOLD = [1.5, 2.0, 2.2, 1.8]
PROXY = [1.5, 2.4, 2.7, 2.9]


def run_of(path: Path, *, raters: bool = True, env: float = 0.0, **heard_at: int) -> Path:
    """heard_at: the steps of the alarm and of the end by the KL budget."""
    run = RunDir.create("ppo", path)
    run.write_config({"name": "ppo", "seed": 0, "reward": {"model": 1.0, "env": env}})
    run.append_metrics({"kind": "train", "step": 0, "version": 1, "loss/policy/policy": 1.0})
    for i, (gold, proxy) in enumerate(zip(GOLD, PROXY, strict=True)):
        heard = {"eval/test/rater": gold - 0.1, "eval/test/rater_error": 0.05} if raters else {}
        figures = {"mean_grade": gold, "proxy": proxy, "kl": 1.5 * i, "repeats": 0.1 * i, "pass@1": 0.5}
        row = {f"eval/test/{name}": value for name, value in figures.items()}
        run.append_metrics({"kind": "eval", "step": 10 * i, "version": 10 * i, **row, **heard})
    run.write_result({"status": "finished", **heard_at})
    return run.path


def section(page: Path) -> str:
    text = page.read_text()
    start = text.index('<section id="hacking"')
    return text[start : text.index("</section>", start)]


def test_peak_end_and_alarm_are_said(tmp_path: Path) -> None:
    text = section(write_report([run_of(tmp_path / "r", alarm=30)]))
    assert "The alarm sounded at step 30." in text
    assert "KL passed its budget" not in text
    assert "which neither the policy nor the alarm sees" in text
    assert "best at step 20 (2.2) and ended at 1.8" in text
    assert "went from 1.5 to 2.9" in text
    assert text.count("<svg") == 4  # scores, scores by KL, and the two signals that were measured
    assert 'data-series="fresh raters"' in text


def test_a_silent_alarm_and_no_raters(tmp_path: Path) -> None:
    assert "did not sound" in section(write_report([run_of(tmp_path / "a")]))
    text = section(write_report([run_of(tmp_path / "b", raters=False)]))
    assert "No fresh raters were heard" in text
    assert "fresh raters</span>" not in text


def test_a_budget_of_kl_is_no_alarm(tmp_path: Path) -> None:
    text = section(write_report([run_of(tmp_path / "r", kl_budget=30)]))
    assert "The alarm did not sound. The KL passed its budget at step 30, and the run ended there." in text


def test_a_score_that_is_rewarded_is_not_called_unseen(tmp_path: Path) -> None:
    text = section(write_report([run_of(tmp_path / "r", env=0.5)]))
    assert "which is a part of the reward too (reward.env: 0.5) and which the alarm does not see, was best" in text


def test_a_run_without_a_learned_reward_has_no_section(tmp_path: Path) -> None:
    run = RunDir.create("plain", tmp_path / "r")
    run.write_config({"name": "plain"})
    run.append_metrics({"kind": "eval", "step": 0, "version": 0, "eval/test/pass@1": 0.5})
    run.write_result({"status": "finished"})
    assert 'id="hacking"' not in write_report([run.path]).read_text()
