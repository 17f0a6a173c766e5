"""The far side of envs/adapters/verifiers.py: a process whose Python has verifiers, and nothing of ours.

It answers each line of JSON on standard input with one on standard output:

    {"load": {"taskset", "config", "path"}}  ->  {}
    {"tasks": [start, count]}                ->  {"tasks": [{"prompt", "data"}, ...]}   fewer than count: no more
    {"score": [index, text]}                 ->  {"rewards": {name: [score, weight]}, "metrics": {name: value}}

or with {"error": sentence}: of "load" and "tasks" the taskset does not suit, of "score" its own code raised.
"""

import asyncio
import inspect
import json
import os
import sys
from collections.abc import Iterator
from typing import Any


class Unsuitable(Exception):
    """The taskset wants more than a question and an answer in text."""


class Worker:
    def load(self, taskset: str, config: dict[str, Any], path: list[str]) -> dict[str, Any]:
        sys.path[:0] = path
        from verifiers.v1 import SingleAgentEnv
        from verifiers.v1.utils.loaders import environment_class, taskset_class, taskset_config_type

        made = taskset_config_type(taskset).model_validate({**config, "id": taskset})
        self.taskset: Any = taskset_class(taskset)(made)
        env = environment_class(taskset)
        if env is not SingleAgentEnv:
            raise Unsuitable(f"it is played by an environment of its own ({env.__name__}), not by one answer")
        if self.taskset.toolsets(made):
            raise Unsuitable("it needs tool servers")
        self.stream: Iterator[Any] = iter(self.taskset)
        self.seen: list[Any] = []
        return {}

    def tasks(self, start: int, count: int) -> dict[str, Any]:
        while len(self.seen) < start + count:
            task = next(self.stream, None)
            if task is None:
                break
            self._check(task)
            self.seen.append(task)
        return {
            "tasks": [
                {"prompt": _chat(task.data), "data": task.data.model_dump(mode="json")}
                for task in self.seen[start : start + count]
            ]
        }

    def score(self, index: int, text: str) -> dict[str, Any]:
        from verifiers.v1.configs.agent import AgentConfig
        from verifiers.v1.graph import MessageNode
        from verifiers.v1.trace import AgentInfo, Trace, TraceTask
        from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

        if len(self.seen) <= index:
            self.tasks(index, 1)
        task = self.seen[index]
        kinds = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
        messages = [kinds[m["role"]](content=m["content"]) for m in _chat(task.data)]
        nodes = [MessageNode(parent=i - 1 if i else None, message=message) for i, message in enumerate(messages)]
        nodes.append(MessageNode(parent=len(nodes) - 1, message=AssistantMessage(content=text), sampled=True))
        trace: Any = Trace(
            task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            agent=AgentInfo(config=AgentConfig()),
            nodes=nodes,
        )
        asyncio.run(task.score(trace))
        return {
            "rewards": {name: [r.score, r.weight] for name, r in trace.rewards.items() if r is not None},
            "metrics": {name: value for name, value in trace.metrics.items() if value is not None},
        }

    def _check(self, task: Any) -> None:
        if task.NEEDS_CONTAINER or type(task).toolsets(task.config):
            raise Unsuitable("its tasks need a container or tool servers")
        hooks = [*task.hooks("reward"), *(judge.score for judge in task.plugged_judges())]
        if not hooks:
            raise Unsuitable("its tasks have no reward function")
        for hook in hooks:
            runtime = inspect.signature(hook).parameters.get("runtime")
            if runtime is not None and runtime.default is runtime.empty:
                raise Unsuitable(f"its reward {hook.__name__} needs a runtime")
        if not task.data.prompt:
            raise Unsuitable("its tasks have no prompt")


def _chat(data: Any) -> list[dict[str, str]]:
    given = [{"role": "user", "content": data.prompt}] if isinstance(data.prompt, str) else []
    for message in [] if given else data.prompt:
        if not isinstance(message.content, str) or message.role not in ("system", "user", "assistant"):
            raise Unsuitable("its prompts hold more than text")
        given.append({"role": message.role, "content": message.content})
    return [*([{"role": "system", "content": data.system_prompt}] if data.system_prompt else []), *given]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a taskset prints must not stand between the answers
    worker = Worker()
    for line in sys.stdin:
        ((what, given),) = json.loads(line).items()
        try:
            answer = worker.load(**given) if what == "load" else getattr(worker, what)(*given)
        except Exception as error:  # tasksets raise what they like
            said = " ".join(str(error).split())[:500]
            answer = {"error": said if isinstance(error, Unsuitable) else f"{type(error).__name__}: {said}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
