"""What the report shows, read from run directories and put into one plain, bounded structure.

Reading is lenient, because a report is wanted most of a run that went wrong: whatever is missing, cut or not a number
is left out, and the run's `notes` say so. Points of a curve and bytes of traces are bounded; the notes name the bounds.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from actors.stats import difference_interval
from posterior.rundir import RunDir, plain

MAX_POINTS = 1500
"""Points of a curve; longer runs are averaged over windows of steps."""
MAX_TRACE_BYTES = 8_000_000
"""JSON bytes of traces in one report, shared by its runs."""
MAX_GROUPS = 32
"""Groups shown of one dump."""
MAX_TRACES = 32
"""Traces shown of one group."""
MAX_TOKENS = 4096
"""Positions shown of one trace."""
MAX_LINE = 64_000_000
"""Bytes of one line of a trace file; longer lines are left out unread."""

STAGES = ("wait", "score", "credit", "forward_backward", "optimiser", "publish", "log", "checkpoint", "eval")
"""Stages that follow one another in the learner's loop; other time/... figures overlap them and are drawn as curves."""

CONTEXT = 0
DUMP = re.compile(r"(?:step_(?P<step>\d+)|eval_(?P<version>\d+)_(?P<split>.+))\.jsonl")
SEED_OR_TIME = re.compile(r"[-_. ]?(?:seed[-_=]?\d+|\bs\d+|\d{8}-\d{6}(?:-\d+)?)$", re.IGNORECASE)


def number(value: Any, digits: int = 6) -> float | int | None:
    """`value` as a finite number of so many significant digits (0: all of them), None if it is not one."""
    if type(value) is int:
        return value
    if type(value) is not float or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}") if digits else value


def _objects(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, one a line, read as they come; lines that are none are counted in `notes`."""
    bad, cut = 0, False
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE):
            if len(line) == MAX_LINE and not line.endswith(b"\n"):
                while (rest := file.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                    pass
                bad += 1
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield row
            elif line.endswith(b"\n"):
                bad += 1
            else:
                cut = True
    if cut:
        notes.append(f"{path.name}: the last line is cut and was left out (the run was writing it, or was killed).")
    if bad:
        notes.append(
            f"{path.name}: {bad} line{'s' * (bad > 1)} could not be read and {'are' if bad > 1 else 'is'} left out."
        )


def _document(path: Path, notes: list[str]) -> dict[str, Any]:
    """A small JSON or YAML file that holds a mapping; {} and a note if it does not."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        value = None
    if isinstance(value, dict):
        return value
    notes.append(f"{path.name} could not be read and was left out.")
    return {}


def _proportion(entry: Any) -> dict[str, Any] | None:
    """One evaluation as {"p", "low", "high", "n"}, None if there is no pass@1."""
    if not isinstance(entry, Mapping) or number(entry.get("pass@1")) is None:
        return None
    return {"p": number(entry["pass@1"]), **{key: number(entry.get(key)) for key in ("low", "high", "n")}}


def _gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """after - before, with an interval where both have one (`actors.stats.difference_interval`: as if unpaired)."""
    ends = [{"pass@1": entry["p"], "low": entry["low"], "high": entry["high"]} for entry in (before, after)]
    if any(value is None for end in ends for value in end.values()):
        return {"p": after["p"] - before["p"], "low": None, "high": None}
    found = difference_interval(ends[0], ends[1])
    return {"p": found["pass@1"], "low": found["low"], "high": found["high"]}


def _evaluations(rows: Sequence[Mapping[str, Any]], flops: Sequence[tuple[float, float | None]]) -> dict[str, Any]:
    """Per split: columns step, seconds, flops and one per metric, in the order of the rows."""
    splits: dict[str, dict[str, list[Any]]] = {}
    for row in rows:
        found: dict[str, dict[str, Any]] = {}
        for key, value in row.items():
            if key.startswith("eval/") and key.count("/") >= 2:
                split, metric = key[5:].rsplit("/", 1)
                found.setdefault(split, {})[metric] = number(value)
        step = number(row.get("version", row.get("step")))
        spent = [total for before, total in flops if step is not None and before < step and total is not None]
        for split, metrics in found.items():
            columns = splits.setdefault(split, {"step": [], "seconds": [], "flops": []})
            length = len(columns["step"])
            columns["step"].append(step)
            columns["seconds"].append(number(row.get("seconds")))
            columns["flops"].append(_flops(row) or (spent[-1] if spent else 0 if flops else None))
            for metric, value in metrics.items():
                columns.setdefault(metric, [None] * length).append(value)
            for column in columns.values():
                column.extend([None] * (length + 1 - len(column)))
    return splits


def _flops(row: Mapping[str, Any]) -> float | None:
    """What training has cost so far; evaluation is free, as it is for `train.flops`."""
    parts = [number(value) for key, value in row.items() if key.startswith("flops/") and key != "flops/eval"]
    known = [part for part in parts if part is not None]
    return number(float(sum(known))) if known else None


def _training(rows: Sequence[Mapping[str, Any]], width: int) -> dict[str, Any]:
    """Columns step, seconds, flops and `metrics`, one entry per window of `width` steps (largest value of .../max)."""
    windows: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        windows.setdefault(int(row["step"]) // width, []).append(row)
    reserved = {"kind", "step", "version", "seconds"}
    keys = dict.fromkeys(
        key for row in rows for key, value in row.items() if key not in reserved and number(value) is not None
    )
    table: dict[str, list[Any]] = {key: [] for key in keys}
    steps: list[int] = []
    seconds: list[Any] = []
    flops: list[Any] = []
    for window in sorted(windows):
        members = windows[window]
        steps.append(window * width)
        seconds.append(number(members[-1].get("seconds")))
        flops.append(_flops(members[-1]))
        for key, column in table.items():
            values = [value for value in (number(row.get(key)) for row in members) if value is not None]
            if not values:
                column.append(None)
            elif key.startswith("flops/"):  # cumulative
                column.append(values[-1])
            else:
                column.append(max(values) if key.endswith("/max") else number(sum(values) / len(values)))
    return {"step": steps, "seconds": seconds, "flops": flops, "metrics": table}


def _with_evaluations(train: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The training rows, with the seconds of each evaluation added to the step before it (to the first, if none was)."""
    rows = [dict(row) for row in train]
    for row in evals:
        seconds, version = number(row.get("time/eval")), number(row.get("version", row.get("step")))
        if seconds is None or version is None or not rows:
            continue
        host = next((own for own in reversed(rows) if own["step"] < version), rows[0])
        for key in ("time/eval", "time/total"):
            if key == "time/eval" or key in host:
                host[key] = (number(host.get(key)) or 0.0) + seconds
    if any("time/eval" in row for row in rows):
        for row in rows:
            row.setdefault("time/eval", 0.0)  # so that means over steps count the steps without one
    return rows


def _stages(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of the whole run by stage of the learner's loop; what the stages leave of time/total is "other"."""
    totals: dict[str, float] = {}
    for row in rows:
        named = {stage: number(row.get(f"time/{stage}")) for stage in STAGES}
        parts = {stage: value for stage, value in named.items() if value is not None}
        for stage, value in parts.items():
            totals[stage] = totals.get(stage, 0.0) + value
        totals["other"] = totals.get("other", 0.0) + max(
            0.0, (number(row.get("time/total")) or 0.0) - sum(parts.values())
        )
    return totals


def _headline(result: Mapping[str, Any], evaluations: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per split: pass@1 before and after and the gain, from the result or, while there is none, from the rows."""
    baseline, final, gains = (result.get(key) for key in ("baseline", "final", "gain"))
    named = [list(part) for part in (baseline, final) if isinstance(part, Mapping)]
    out = []
    for split in dict.fromkeys([name for part in named for name in part] + list(evaluations)):
        before = _proportion(baseline.get(split)) if isinstance(baseline, Mapping) else None
        after = _proportion(final.get(split)) if isinstance(final, Mapping) else None
        columns = evaluations.get(split, {})
        measured = [i for i, value in enumerate(columns.get("pass@1", [])) if value is not None]
        at = {key: [column[i] for i in measured] for key, column in columns.items()}
        if before is None and measured:
            before = _proportion({key: column[0] for key, column in at.items()})
        if after is None and len(measured) > 1:
            after = _proportion({key: column[-1] for key, column in at.items()})
        gain = _proportion(gains.get(split)) if isinstance(gains, Mapping) else None
        if gain is None and before and after:
            gain = _gain(before, after)
        if before or after:
            steps = [step for step in at.get("step", []) if step is not None]
            out.append({"split": split, "before": before, "after": after, "gain": gain, "steps": steps[-1:]})
    return out


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _trace(trace: Mapping[str, Any], cut: list[int]) -> dict[str, Any]:
    """One trace as segments of equal kind and turn; given text is joined, sampled tokens keep their numbers."""
    tokens = [str(token) for token in _list(trace.get("tokens"))]
    if len(tokens) > MAX_TOKENS:
        cut.append(len(tokens))
        tokens = tokens[:MAX_TOKENS]

    def column(name: str) -> list[Any]:
        values = _list(trace.get(name))[: len(tokens)]
        return values + [None] * (len(tokens) - len(values))

    kinds, turns = [k or 0 for k in column("kind")], [t or 0 for t in column("turn")]
    sampler = [number(value, 0) for value in column("logprob")]
    learner = [number(value, 0) for value in column("learner_logprob")]
    delta = [None if a is None or b is None else number(b - a, 3) for a, b in zip(sampler, learner, strict=True)]
    logprob = [number(a if a is not None else b, 4) for a, b in zip(sampler, learner, strict=True)]
    advantage = [number(value, 4) for value in column("advantage")]
    segments: list[dict[str, Any]] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        if end < len(tokens) and (kinds[end], turns[end]) == (kinds[start], turns[start]):
            continue
        segment: dict[str, Any] = {"kind": kinds[start], "turn": turns[start], "at": start}
        if kinds[start] == CONTEXT:
            segment["text"] = "".join(tokens[start:end])
        else:
            segment["tokens"] = tokens[start:end]
            for name, values in (("logprob", logprob), ("delta", delta), ("advantage", advantage)):
                if any(value is not None for value in values[start:end]):
                    segment[name] = values[start:end]
        segments.append(segment)
        start = end
    components = trace.get("components")
    return {
        "episode": str(trace.get("episode", "")),
        "reward": number(trace.get("reward")),
        "passed": bool(trace.get("passed")),
        "outcome": str(trace.get("outcome", "ok")),
        "version": number(trace.get("version")),
        "note": str(trace.get("note") or ""),
        "components": {str(k): number(v) for k, v in components.items()} if isinstance(components, Mapping) else {},
        "length": sum(kind != CONTEXT for kind in kinds),
        "segments": segments,
    }


def _spread(count: int) -> list[int]:
    """0..count-1 in an order whose every beginning is spread evenly: last, first, then ever finer middles."""
    order = dict.fromkeys([count - 1, 0] if count else [])
    parts = 2
    while len(order) < count:
        order.update(dict.fromkeys(round((count - 1) * part / parts) for part in range(1, parts)))
        parts *= 2
    return list(order)


def read_dumps(run: RunDir, budget: int, notes: list[str]) -> list[dict[str, Any]]:
    """The trace dumps of a run in order of version, at most `budget` JSON bytes, spread evenly over the run.

    One dump: {"step", "split" (None for training), "groups"}.
    """
    named = [(match, path) for path in run.traces.glob("*.jsonl") if (match := DUMP.fullmatch(path.name))]
    found = sorted((int(match["step"] or match["version"] or 0), match["split"] or "", path) for match, path in named)
    dumps: dict[int, dict[str, Any]] = {}
    cut: list[int] = []
    dropped, full = False, False
    for place in _spread(len(found)):
        if full:
            break
        step, split, path = found[place]
        groups: list[dict[str, Any]] = []
        for row in _objects(path, notes):
            traces = [trace for trace in _list(row.get("traces")) if isinstance(trace, Mapping)]
            group: dict[str, Any] = {
                "index": number(row.get("index")),
                "task": str(row.get("task", "")),
                "prompt": str(row.get("prompt") or ""),
                "answer": None if row.get("answer") is None else str(row["answer"]),
                "traces": [_trace(trace, cut) for trace in traces[:MAX_TRACES]],
                "left_out": max(0, len(traces) - MAX_TRACES),
            }
            size = len(json.dumps(group))
            while size > budget and not dumps and not groups and len(group["traces"]) > 1:  # show at least something
                kept = len(group["traces"]) // 2
                group["traces"], group["left_out"] = group["traces"][:kept], len(traces) - kept
                size, dropped = len(json.dumps(group)), True
            if len(groups) == MAX_GROUPS or size > budget:
                dropped, full = True, size > budget
                break
            budget -= size
            groups.append(group)
        if groups:
            dumps[place] = {"step": step, "split": split or None, "groups": groups}
    if dropped:
        notes.append(
            f"Traces are shown in part: {len(dumps)} of {len(found)} dumps, at most {MAX_GROUPS} groups of each, "
            f"within {MAX_TRACE_BYTES // 1_000_000} MB a report. All of them are in {run.traces.name}/."
        )
    if cut:
        notes.append(f"{len(cut)} traces are shown up to position {MAX_TOKENS} (the longest has {max(cut)}).")
    return [dumps[place] for place in sorted(dumps)]


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def group_runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs that differ only in their seed (and a seed or time in their name), together: [{"name", "runs": [index]}].

    Groups of the same name are told apart by the config keys they differ in.
    """
    members: dict[str, list[int]] = {}
    flats = []
    for index, run in enumerate(runs):
        flat = {key: value for key, value in _flat(run["config"]).items() if key not in ("name", "seed")}
        flats.append(flat)
        stem = SEED_OR_TIME.sub("", run["name"])
        alone = "" if run["config"] else str(index)
        members.setdefault(json.dumps([stem, plain(flat), alone], sort_keys=True), []).append(index)
    groups: list[dict[str, Any]] = [
        {"name": SEED_OR_TIME.sub("", runs[own[0]]["name"]) or runs[own[0]]["name"], "runs": own}
        for own in members.values()
    ]
    for name in {group["name"] for group in groups}:
        same = [group for group in groups if group["name"] == name]
        if len(same) == 1:
            continue
        own = [flats[group["runs"][0]] for group in same]
        keys = [
            key for key in dict.fromkeys(key for flat in own for key in flat) if len({str(f.get(key)) for f in own}) > 1
        ]
        for place, (group, flat) in enumerate(zip(same, own, strict=True), 1):
            told = ", ".join(f"{key.rsplit('.', 1)[-1]}={flat.get(key)}" for key in keys[:3])
            group["name"] = f"{name} ({told or place})"
    return groups


def load_run(run: RunDir) -> dict[str, Any]:
    """Everything of one run but its traces and curves' thinning: see the keys below. `rows` are its training rows."""
    notes: list[str] = []
    config, result = _document(run.config, notes), _document(run.result, notes)
    rows = list(_objects(run.metrics, notes)) if run.metrics.exists() else []
    if not rows:
        notes.append("metrics.jsonl holds no row yet.")
    steps = {row["step"]: row for row in rows if row.get("kind") == "train" and isinstance(row.get("step"), int)}
    versions = {row.get("version", row.get("step")): row for row in rows if row.get("kind") == "eval"}
    train = [steps[step] for step in sorted(steps)]  # of a step written twice (a resumed run), the later row counts
    lost = {
        key: sum(
            key in row and (row[key] is None or (isinstance(row[key], float) and not math.isfinite(row[key])))
            for row in train
        )
        for key in dict.fromkeys(key for row in train for key in row)
    }
    for key, count in lost.items():
        if count:
            notes.append(f"{key} is not a finite number in {count} of {len(train)} training rows.")
    evals = list(versions.values())
    train = _with_evaluations(train, evals)
    evaluations = _evaluations(evals, [(row["step"], _flops(row)) for row in train])
    return {
        "path": str(run.path),
        "name": str(result.get("name") or config.get("name") or run.path.name),
        "seed": number(config.get("seed")),
        "status": str(result.get("status") or "in progress"),
        "config": config,
        "config_text": run.config.read_text(encoding="utf-8", errors="replace") if run.config.exists() else "",
        "result": result,
        "rows": train,
        "evaluations": evaluations,
        "headline": _headline(result, evaluations),
        "stages": _stages(train),
        "notes": notes,
    }


def collect(runs: Sequence[RunDir]) -> dict[str, Any]:
    """All runs with thinned curves and bounded traces; `plain` JSON after the keys "rows" and "config" are dropped."""
    loaded = [load_run(run) for run in runs]
    longest = max((run["rows"][-1]["step"] + 1 for run in loaded if run["rows"]), default=1)
    width = max(1, -(-longest // MAX_POINTS))  # the same windows for every run, so that seeds can be averaged
    for run, place in zip(loaded, runs, strict=True):
        if width > 1:
            run["notes"].append(f"Each point of the training curves is the mean of {width} steps.")
        run["train"] = _training(run.pop("rows"), width)
        run["dumps"] = read_dumps(place, MAX_TRACE_BYTES // len(runs), run["notes"])
    return {"runs": loaded, "groups": group_runs(loaded)}


def label(run: Mapping[str, Any]) -> str:
    """A run's name among several: with its seed, where it has one."""
    return run["name"] if run["seed"] is None else f"{run['name']}, seed {run['seed']}"
