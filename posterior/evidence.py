"""What a run's result says about its latents, and what it does not: figures, a table, a sentence that claims no more.

A claim that latents help needs the run above each of its controls, with intervals apart, and answers that another
problem's latents bring down to what a model without thought reaches (design, promise 7). Everything reads result.json
leniently: a part may be missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.causal import INTERVENTIONS

CONTROLS = ("no_thought", "pause", "detached")
NAMES = {"no_thought": "no thought", "pause": "pause tokens", "detached": "detached feedback"}


@dataclass(frozen=True)
class Share:
    """A proportion with its 95 % interval; the ends are None where none is known."""

    p: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        text = f"{100 * self.p:.1f} %"
        return (
            text if self.low is None or self.high is None else f"{text} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        )


def share(entry: Any, key: str = "accuracy") -> Share | None:
    """Of an entry {key, low, high}; None if there is no number."""
    if not isinstance(entry, Mapping) or not _number(entry.get(key)):
        return None
    ends: list[Any] = [entry.get("low"), entry.get("high")]
    return Share(float(entry[key]), *(map(float, ends) if all(map(_number, ends)) else ()))


def in_order(splits: Iterable[str]) -> list[str]:
    """Splits called hops1, hops2, ... by their number; others in the order given."""
    splits = list(splits)
    numbers = [re.search(r"(\d+)$", split) for split in splits]
    if all(numbers):
        return [split for _, split in sorted(zip((int(n[1]) for n in numbers if n), splits, strict=True))]
    return splits


def own_accuracy(result: Mapping[str, Any]) -> dict[str, Share]:
    """Held-out pass@1 of the finished run, by split."""
    final = result.get("final")
    found = {s: share(final[s], "pass@1") for s in in_order(final)} if isinstance(final, Mapping) else {}
    return {split: value for split, value in found.items() if value is not None}


def control_accuracy(entry: Any, splits: Sequence[str]) -> dict[str, Share]:
    """Held-out pass@1 of one control (`posterior.afterwards`), by split. splits: the run's own, in order."""
    if not isinstance(entry, Mapping):
        return {}
    if isinstance(entry.get("final"), Mapping):
        return own_accuracy(entry)
    for key, values in entry.items():
        ends = entry.get(f"{key}_interval")
        if key.startswith("accuracy_by_") and isinstance(values, list) and isinstance(ends, list):
            return {split: Share(p, *end) for split, p, end in zip(splits, values, ends, strict=False)}
    return {}


def controls_of(result: Mapping[str, Any]) -> dict[str, dict[str, Share]]:
    """Control name -> split -> accuracy, of the controls that were trained."""
    trained = result.get("controls")
    splits = list(own_accuracy(result))
    found = {n: control_accuracy(e, splits) for n, e in trained.items()} if isinstance(trained, Mapping) else {}
    return {name: found[name] for name in [*CONTROLS, *(set(found) - set(CONTROLS))] if found.get(name)}


def battery_of(result: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Split -> intervention -> its figures, in order; without the lens and the probes."""
    causal = result.get("causal")
    if not isinstance(causal, Mapping):
        return {}
    return {
        split: {name: entry for name, entry in causal[split].items() if share(entry) is not None}
        for split in in_order(causal)
        if isinstance(causal[split], Mapping)
    }


def interventions(battery: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of all splits' interventions: clean, the replacements, then truncations by what they leave."""
    seen = {name for entries in battery.values() for name in entries}
    cuts = sorted((n for n in seen if n.startswith("truncate ")), key=lambda n: int(n.split()[1]))
    return [*(n for n in ("clean", *INTERVENTIONS) if n in seen), *cuts]


def spoken(name: str) -> str:
    """An intervention in words."""
    if name.startswith("truncate "):
        kept = int(name.split()[1])
        return f"only the first {kept}" if kept else "none at all"
    return {
        "clean": "the model's own",
        "zero": "zeros",
        "mean": "the mean of all problems",
        "noise": "noise of equal norm",
        "shuffle": "its own in another order",
        "transplant": "another problem's",
    }.get(name, name)


def verdict(result: Mapping[str, Any]) -> str:
    """What is known on the last (hardest) split. Says that latents help only where nothing is missing."""
    battery, own, controls = battery_of(result), own_accuracy(result), controls_of(result)
    if not battery:
        return "Nothing is known: `posterior eval RUN --causal` replaces the latents and judges the answers again."
    split = list(battery)[-1]
    clean, moved = share(battery[split].get("clean")), share(battery[split].get("transplant"))
    said = f"On {split}, good answers are read as the likeliest in {clean} of the problems"
    said += f", with another problem's latents in {moved}." if moved else "."
    missing = [NAMES[name] for name in CONTROLS if split not in controls.get(name, {})]
    if missing:
        return (
            f"{said} The controls are missing ({', '.join(missing)}): whether latents help is not known. "
            "Name them in controls.names of the run's config.yaml and `posterior resume RUN` trains them."
        )
    mine = own.get(split)
    best = max(CONTROLS, key=lambda name: controls[name][split].p)
    theirs = f"that of the best control ({NAMES[best]}) {controls[best][split]}"
    said = f"On {split}, accuracy is {mine}; {theirs}; {said[0].lower()}{said[1:]}"
    above = mine is not None and all(_apart(mine, controls[name][split]) for name in CONTROLS)
    bare = controls["no_thought"][split]
    needed = moved is not None and moved.low is not None and bare.high is not None and moved.low <= bare.high
    if above and needed:
        return (
            f"{said} In this run the latents help: it is above every control, "
            "and with another problem's latents no better than without thought."
        )
    if not above:
        return f"{said} The run is not above every control with intervals apart: it does not show that latents help."
    return (
        f"{said} With another problem's latents it still answers more than without thought: "
        "what helps is not shown to be the latents."
    )


def lines(result: Mapping[str, Any]) -> list[str]:
    """A table for people: interventions and controls by split, each with its 95 % interval; then the sentence."""
    battery, controls, own = battery_of(result), controls_of(result), own_accuracy(result)
    out: list[str] = []
    for split, entries in battery.items():
        out += [f"{split}", f"  {'latents':<28}{'accuracy [95 %]':<24}log-prob of the answer lost [95 %]"]
        for name in interventions({split: entries}):
            lost = [entries[name].get(f"logprob_lost{end}") for end in ("", "_low", "_high")]
            cost = (
                ""
                if name == "clean" or not all(map(_number, lost))
                else "{:.2f} [{:.2f}, {:.2f}]".format(*(round(x, 2) + 0.0 for x in lost))
            )
            out.append(f"  {spoken(name):<28}{share(entries[name])!s:<24}{cost}".rstrip())
        if split in own:
            out.append(f"  {'(trained run, sampled)':<28}{own[split]}")
        out += [f"  {f'(control: {NAMES.get(n, n)})':<28}{by[split]}" for n, by in controls.items() if split in by]
    wanted = [n for n in result.get("controls_wanted", ()) if n not in controls]
    if wanted:
        out.append(
            f"Not trained yet: {', '.join(NAMES.get(n, n) for n in wanted)}; `posterior resume RUN` trains them."
        )
    return [*out, verdict(result)]


def _apart(above: Share, below: Share) -> bool:
    return above.low is not None and below.high is not None and above.low > below.high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
