"""What follows the training of a latent thinker: the causal battery, and the controls trained from the same configuration.

No figure of a latent thinker stands without them (design, promise 7): they become part of its result.json. A control is a whole run in
its own folder, RUN/controls/NAME; one that was interrupted is continued by `posterior resume RUN`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from posterior.causal import causal
from posterior.config import RunConfig
from posterior.config_load import Resolved
from posterior.rundir import RunDir
from posterior.targets import open_target

CONTROLS: dict[str, str] = {
    "no_thought": "answers at once",
    "pause": "as many positions, one learned embedding, nothing fed back",
    "detached": "no gradient from a latent to the hidden state it was made from",
}


def pending(run: RunDir, config: RunConfig) -> bool:
    """Whether a finished run still lacks something of what follows."""
    result = run.read_result()
    return result.get("status") == "finished" and (
        bool(config.eval.causal and "causal" not in result)
        or any(name not in result.get("controls", {}) for name in config.controls.names)
    )


def complete(run: RunDir, config: RunConfig) -> None:
    """Do what `pending` names, and write it into result.json as it comes."""
    from posterior.train import say

    result = run.read_result()
    if by := _by_number(result.get("final", {})):
        result.update(by)
    if config.eval.causal and "causal" not in result:
        say("causal battery: replacing latents on held-out tasks")
        mine, _ = open_target(str(run.path))
        result["causal"] = causal(mine, config.eval.splits, config.eval.causal)
        newest = Path(mine.model.path).parent.name
        result["causal_of"] = {"checkpoint": newest, "tasks": config.eval.causal, "seed": config.seed}
        run.write_result(result)
    if "references" not in result and (known := _references(config)):
        result["references"] = known
        run.write_result(result)
    for name in config.controls.names:
        if name in result.get("controls", {}):
            continue
        tried = [_one(run, config, name, lr) for lr in config.controls.lr or [config.train.optimiser.lr]]
        best = max(tried, key=lambda found: found["mean"])
        result.setdefault("controls", {})[name] = {"what": CONTROLS[name], **best, "tried": tried}
        run.write_result(result)


def _one(run: RunDir, config: RunConfig, name: str, lr: float) -> dict[str, Any]:
    """Train one control with one learning rate; its final held-out accuracies."""
    from posterior.train import resume, say, train

    sibling = sibling_config(config, name, lr)
    folder = run.path / "controls" / f"{name}-lr{lr:g}"
    say(f"control {name} ({CONTROLS[name]}), lr {lr:g}, {sibling.train.steps} steps")
    if (folder / "config.yaml").exists():
        result = RunDir.open(folder).read_result()
        if result.get("status") != "finished":
            result = resume(folder)
    else:
        folder.parent.mkdir(exist_ok=True)
        result = train(Resolved(sibling, {}), folder)
    final = {
        split: {k: v[k] for k in ("pass@1", "low", "high", "n", "mean_grade")} for split, v in result["final"].items()
    }
    accuracy = [v["pass@1"] for v in final.values()]
    judged = causal(open_target(str(folder))[0], config.eval.splits, config.eval.causal) if config.eval.causal else {}
    return {
        "lr": lr,
        "steps": sibling.train.steps,
        "seconds": result["seconds"],
        "mean": sum(accuracy) / max(len(accuracy), 1),
        **(_by_number(result["final"]) or {"final": final}),
        **({"logprob": {split: found["clean"]["logprob"] for split, found in judged.items()}} if judged else {}),
    }


def _references(config: RunConfig) -> dict[str, dict[str, float]]:
    """What the environment knows without a model, by split: floors of shortcuts, entropies."""
    from envs.registry import make

    env = make(config.env.name, config.env.args)
    found = {split: env.references(split, config.eval.tasks) for split in config.eval.splits}
    return {split: figures for split, figures in found.items() if figures}


def sibling_config(config: RunConfig, name: str, lr: float) -> RunConfig:
    """The same run without what the control lacks."""
    out = config.model_copy(deep=True)
    out.name = f"{config.name}-{name}"
    out.train.steps = round(config.controls.steps_factor * config.train.steps)
    out.train.flops = config.train.flops and config.controls.steps_factor * config.train.flops
    out.train.seconds = config.train.seconds and config.controls.steps_factor * config.train.seconds
    out.train.optimiser.lr = lr
    out.eval.causal = 0
    out.eval.every, out.eval.flops = out.train.steps, None
    out.controls.names = []
    if name == "no_thought":
        out.sampling.latents = 0
    elif name == "pause":
        assert out.model.thinker is not None
        out.model.thinker.kind = "pause"
    else:
        out.model.grad = "detached"
    return out


def _by_number(splits: dict[str, Any]) -> dict[str, Any]:
    """{"accuracy_by_hops": [...]} for splits called hops1, hops2, ..., with their intervals; {} for other splits."""
    found = {split: re.fullmatch(r"([a-z]+?)s?(\d+)", split) for split in splits}
    if not found or any(match is None for match in found.values()):
        return {}
    ordered = sorted(splits, key=lambda split: int(found[split][2]))  # type: ignore[index]
    name = found[ordered[0]][1]  # type: ignore[index]
    return {
        f"accuracy_by_{name}": [splits[s]["pass@1"] for s in ordered],
        f"accuracy_by_{name}_interval": [[splits[s]["low"], splits[s]["high"]] for s in ordered],
    }
