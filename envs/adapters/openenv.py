"""A running OpenEnv server as one of our environments.

    posterior envs check openenv url=http://localhost:8000 action=message observation=text

OpenEnv's plain HTTP routes make a fresh environment for every call, so an episode is played over the server's WebSocket, one connection
an episode. Nothing of OpenEnv is needed here; its package (openenv-core) does not install beside vLLM's pins, and runs where the
server runs. A server allows one episode at a time unless it was made with `max_concurrent_envs`.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from envs.adapters.seeded import SPLITS, seeded_tasks
from envs.base import Env, Grade, InfraError, Observation, Step, Task

REFUSED = ("VALIDATION_ERROR", "INVALID_JSON")
"""Errors that the action's own words may cause."""


class OpenEnv(Env):
    """url: of the server. action: field of its action that takes the model's text (default: the only required one of its schema).
    observation: field of its observation that is shown (default: all of it, as JSON). instructions: shown before the first
    observation. max_turns: actions of an episode. scale: what rewards are multiplied by. solved_at: the (scaled) return at which a
    task counts as solved. train, test: most tasks of a split. seconds: for one answer of the server.
    """

    description: ClassVar[str] = "a running OpenEnv server (multi-turn; url=...)"

    def __init__(
        self,
        url: str,
        action: str | None = None,
        observation: str | None = None,
        instructions: str = "",
        max_turns: int = 50,
        scale: float = 1.0,
        solved_at: float = 1.0,
        train: int = 1000,
        test: int = 200,
        seconds: float = 60.0,
    ) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"openenv: url must begin with http:// or https://, not {url!r}")
        self.action, self.observation, self.instructions = action, observation, instructions
        self.max_turns, self.scale, self.solved_at, self.seconds = (
            int(max_turns),
            float(scale),
            float(solved_at),
            seconds,
        )
        self.sizes = (train, test)
        self._socket: Any = None
        self._total, self._turns = 0.0, 0

    def ready(self) -> None:
        """Raises ValueError if the websockets package or the server is missing, or its action is not one text."""
        try:
            import websockets.sync.client  # noqa: F401
        except ImportError as error:
            raise ValueError("openenv needs the package websockets; run: pip install 'posterior[openenv]'") from error
        self._field()

    def splits(self) -> Sequence[str]:
        return SPLITS

    def tasks(self, split: str) -> Iterable[Task]:
        """One task for each way in which the server's seeds open; one opening in eight is held out."""
        return seeded_tasks(f"openenv {self.url}", split, self._opening, self.instructions, self.sizes)

    async def reset(self, task: Task, seed: int) -> Observation:
        """The task's own seed goes to the server, so that answers to one task meet one world."""
        await asyncio.to_thread(self._reset, int(task.meta["seed"]))
        self._total, self._turns = 0.0, 0
        return Observation()

    async def step(self, action: str) -> Step:
        self._turns += 1
        plain = action.encode("utf-8", "replace").decode()  # lone surrogates cannot travel
        answer = await asyncio.to_thread(self._send, "step", {self._field(): plain})
        if answer["type"] == "error":
            return self._told("That is no action here.", 0.0, False)
        data = answer["data"]
        return self._told(self._shown(data), float(data.get("reward") or 0.0) * self.scale, bool(data.get("done")))

    async def close(self) -> None:
        self._hang_up()

    def _told(self, text: str, reward: float, done: bool) -> Step:
        self._total += reward
        cut = self._turns >= self.max_turns and not done
        if not (done or cut):
            return Step(text, reward, terminated=False)
        self._hang_up()  # the server has one place, or few
        grade = Grade(self._total, {"turns": float(self._turns)}, passed=self._total >= self.solved_at - 1e-9)
        return Step(text, reward, terminated=done, truncated=cut, grade=grade)

    def _opening(self, seed: int) -> str:
        try:
            return self._reset(seed)
        finally:
            self._hang_up()

    def _reset(self, seed: int) -> str:
        from websockets.sync.client import connect

        self._hang_up()
        try:
            address = "ws" + self.url.removeprefix("http") + "/ws"
            self._socket = connect(address, open_timeout=self.seconds, max_size=2**26)
        except OSError as error:
            raise InfraError(f"openenv: no connection to {self.url}: {error}") from error
        return self._shown(self._send("reset", {"seed": seed})["data"])

    def _send(self, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        """The server's answer: an observation, or an error that the action's words caused."""
        from websockets.exceptions import WebSocketException

        if self._socket is None:
            raise RuntimeError("step() before reset(), or behind the episode's end")
        try:
            self._socket.send(json.dumps({"type": kind, "data": data}))
            answer: dict[str, Any] = json.loads(self._socket.recv(self.seconds))
        except (OSError, WebSocketException, TimeoutError) as error:
            self._hang_up()
            raise InfraError(f"openenv: {self.url} does not answer: {error or type(error).__name__}") from error
        code = answer["data"].get("code") if answer["type"] == "error" else None
        if code is not None and (kind != "step" or code not in REFUSED):
            self._hang_up()
            raise InfraError(f"openenv: {self.url} answers {code}: {answer['data'].get('message')}")
        return answer

    def _hang_up(self) -> None:
        if self._socket is None:
            return
        from websockets.exceptions import WebSocketException

        try:
            self._socket.send(
                '{"type": "close"}'
            )  # so that the server frees the place before the next episode asks for one
            self._socket.recv(5.0)
        except (OSError, WebSocketException, TimeoutError):
            pass  # it has gone, as it should
        self._socket.close()
        self._socket = None

    def _shown(self, data: dict[str, Any]) -> str:
        seen = data["observation"]
        if self.observation is None:
            return json.dumps(seen, sort_keys=True)
        if self.observation not in seen:
            raise ValueError(f"openenv: {self.url} observes {', '.join(seen)}, and no {self.observation!r}")
        return str(seen[self.observation])

    def _field(self) -> str:
        if self.action is None:
            try:
                with urllib.request.urlopen(f"{self.url}/schema", timeout=self.seconds) as answer:
                    schema = json.load(answer)["action"]
            except (OSError, ValueError, KeyError) as error:
                raise ValueError(
                    f"openenv: no OpenEnv server answers at {self.url} ({error}); start it, or give its url"
                ) from error
            required = schema.get("required", [])
            if len(required) != 1:
                fields = ", ".join(schema["properties"])
                raise ValueError(
                    f"openenv: the action of {self.url} has the fields {fields}; say which one takes the text: action=..."
                )
            self.action = str(required[0])
        return self.action
