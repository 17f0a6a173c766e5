"""`posterior eval --causal`, and the last part of a latent thinker's training: which answers need their thought."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.stats import mean_interval, wilson
from envs.base import Task
from models.causal import Outcome, battery
from models.lens import look, states
from models.loading import RoleModel, load_role, load_tokenizer
from models.probes import FOLDS, Probes, probe
from models.trace import Kind, Trace
from posterior import launch
from posterior.config import RunConfig
from posterior.config_load import ConfigError
from posterior.evaluate import held_out, point_at
from posterior.progress import Bar
from posterior.rundir import RunDir
from posterior.targets import open_target

PROBE_TASKS = 4
"""Problems that probes are fitted and judged on, as a multiple of the battery's."""
PER_VALUE = 8
"""A written step is probed for if there are so many problems for each of its values: free text has no classes."""

Told = Callable[[int, str], None]
"""Takes (parts done, what comes next)."""


def causal(
    config: RunConfig, splits: Sequence[str], tasks: int = 256, told: Told = lambda done, what: None
) -> dict[str, Any]:
    """By split: accuracy and log-probability of the good answer under every intervention, with 95 % intervals; lens;
    probes.

    told: hears of every part, three a split. A model that takes no latent steps has "clean" alone.
    """
    from envs.registry import make

    plan = launch.make_plan(config)
    algorithm = plan.make_algorithm()
    if not algorithm.offline:  # an online method makes no examples; the answers are read in the same way
        algorithm = launch.build_algorithm({"name": "neuralese_sft"}, plan.model, plan.sampling, config.seed, 1)
    model = load_role(plan.model, trust_remote_code=config.model.trust_remote_code).eval()
    env = make(config.env.name, config.env.args)
    out: dict[str, Any] = {}
    for part, split in enumerate(splits):
        told(3 * part, f"{split}: replacing latents")
        asked: list[Task] = list(itertools.islice(env.tasks(split), PROBE_TASKS * tasks))
        traces: list[Trace] = [algorithm.example(task, i, 1 << 30) for i, task in enumerate(asked)]
        by_steps: dict[int, list[Trace]] = {}
        for trace in traces[:tasks]:
            by_steps.setdefault(len(trace.where(Kind.LATENT)), []).append(trace)
        found = [battery(model, same, k, config.seed) for k, same in sorted(by_steps.items())]
        names = list(dict.fromkeys(name for one in found for name in one))
        out[split] = {name: _figures([one for one in found if name in one], name) for name in names}
        most = max(by_steps)
        if most:
            told(3 * part + 1, f"{split}: lens")
            out[split]["lens"] = _lens(config, plan.model, model, by_steps[most], most)
            told(3 * part + 2, f"{split}: probes")
            if probes := _probes(model, asked, traces, most, config.seed):
                out[split]["probes"] = probes
    return out


def eval_causal(
    target: str,
    env: str | None,
    args: dict[str, Any],
    *,
    split: str | None,
    tasks: int,
    seed: int,
    checkpoint: str | None,
) -> dict[str, Any]:
    """`posterior eval RUN --causal`: the battery on a run's checkpoint, kept in its result.json; returned with the
    controls.

    env, args, split, tasks, seed: as in `posterior.evaluate.evaluate`. checkpoint: see `open_target`.
    """
    folder = Path(target)
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{target} is no run directory: a model alone does not say how many latent steps it takes")
    config, what = open_target(target, checkpoint)
    if not config.sampling.latents:
        raise ConfigError(f"the run {target} takes no latent steps (sampling.latents is 0): nothing can be replaced")
    own = env in (None, config.env.name) and not args
    point_at(config, env, args)
    config.seed = seed
    splits = [split] if split else config.eval.splits if own else held_out(config)
    config.eval.splits = list(splits)
    with Bar("parts", 3 * len(splits), "loading the model") as bar:
        found = causal(config, splits, tasks, lambda done, what: None if bar.draw(done, what) else bar.say(what))
    of = {"checkpoint": Path(config.model.path).parent.name, "tasks": tasks, "seed": seed}
    run = RunDir.open(folder)
    result = run.read_result()
    if own:
        # figures of other checkpoints or seeds do not mix
        kept = result.get("causal", {}) if result.get("causal_of") == of else {}
        result.update(causal={**kept, **found}, causal_of=of)
        run.write_result(result)
    return {
        "target": what,
        "env": config.env.name,
        "causal": found,
        "causal_of": of,
        "controls": result.get("controls", {}) if own else {},
        "controls_wanted": config.controls.names,
        "final": result.get("final", {}),
    }


def _figures(batteries: Sequence[dict[str, Outcome]], name: str) -> dict[str, float]:
    """Over all problems that the intervention was tried on."""
    correct = np.concatenate([one[name].correct for one in batteries])
    logprob = np.concatenate([one[name].logprob for one in batteries])
    drop = np.concatenate([one["clean"].logprob for one in batteries]) - logprob
    low, high = wilson(float(correct.sum()), len(correct))
    worse, most = mean_interval(drop.tolist())
    return {
        "accuracy": float(correct.mean()),
        "low": low,
        "high": high,
        "logprob": float(logprob.mean()),
        "logprob_lost": float(drop.mean()),
        "logprob_lost_low": worse,
        "logprob_lost_high": most,
    }


def _lens(config: RunConfig, path: str, model: Any, traces: Sequence[Trace], steps: int) -> dict[str, Any]:
    lens = look(model, traces[:64], steps, config.seed)
    tokenizer = load_tokenizer(path, config.model.trust_remote_code)
    shown = [
        {
            "prompt": tokenizer.decode(trace.token[trace.kind == Kind.CONTEXT].tolist()),
            "answer": tokenizer.decode(trace.token[trace.kind == Kind.TARGET].tolist(), skip_special_tokens=True),
            "steps": [
                [
                    [word, round(float(p), 4)]
                    for word, p in zip(tokenizer.batch_decode([[w] for w in words]), shares, strict=True)
                ]
                for words, shares in zip(lens.words_NK5[i].tolist(), lens.share_NK5[i], strict=True)
            ],
        }
        for i, trace in enumerate(traces[:8])
    ]
    figures = {name: np.round(getattr(lens, f"{name}_{axis}"), 4).tolist() for name, axis in _AXES}
    return {**figures, "problems": shown}


def _probes(
    model: RoleModel, tasks: Sequence[Task], traces: Sequence[Trace], latents: int, seed: int
) -> dict[str, Any] | None:
    """Of the problems with so many latents and the commonest number of written steps; None where no step can be
    probed for."""
    same = [i for i, trace in enumerate(traces) if len(trace.where(Kind.LATENT)) == latents]
    written = Counter(len(tasks[i].steps or ()) for i in same).most_common(1)[0][0]
    same = [i for i in same if len(tasks[i].steps or ()) == written]
    labels = [(*(tasks[i].steps or ()), str(tasks[i].answer)) for i in same]
    names = [*(f"step {j + 1}" for j in range(written)), "answer"]
    values = [len({row[j] for row in labels}) for j in range(len(names))]
    shown = [j for j, n in enumerate(values) if 1 < n <= len(same) // PER_VALUE]
    if len(same) < 2 * FOLDS or not shown:
        return None
    z_NKD, after_NKD = states(model, [traces[i] for i in same], latents)
    wanted = [[row[j] for j in shown] for row in labels]
    latent, state = probe(z_NKD, wanted, seed), probe(after_NKD, wanted, seed)
    return {
        "problems": len(same),
        "steps": [names[j] for j in shown],
        "classes": latent.classes_J.tolist(),
        "common": np.round(latent.common_J / len(same), 4).tolist(),
        "latent": _probe_figures(latent),
        "state": _probe_figures(state),
    }


def _probe_figures(found: Probes) -> dict[str, Any]:
    """Matrices latent x step, shares of the problems with 95 % intervals."""
    ends = [[wilson(float(c), found.problems) for c in row] for row in found.correct_KJ]
    return {
        "accuracy": np.round(found.correct_KJ / found.problems, 4).tolist(),
        "low": [[round(low, 4) for low, _ in row] for row in ends],
        "high": [[round(high, 4) for _, high in row] for row in ends],
        "control": np.round(found.control_KJ / found.problems, 4).tolist(),
    }


_AXES = (("norm", "K"), ("rank", "K"), ("cosine", "KK"), ("gain", "K"))
