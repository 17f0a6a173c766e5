"""The program inside the sandbox: gives up every right that a proof checker does not need, then runs it.

    python launcher.py FILTER_FD UID MEMORY_MB exec COMMAND...     becomes the command, which talks over stdin and stdout
    python launcher.py FILTER_FD UID MEMORY_MB job                 runs the steps that stdin lists, prints how each ended

A step is one process in a folder of its own, which nobody can write to before or after it: {"folder", "files": {name: text}, "command":
[...], "cpu": s, "wall": s, "output": bytes, "keep": name or "", "environment": {}}. The first step that fails ends the job. FILTER_FD -1
means no filter, UID -1 means keep the uid. It imports the standard library and, of the coding sandbox, zygote.py.
"""

from __future__ import annotations

import base64
import json
import math
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, "/harness")
from zygote import filter_installer

FILE_BYTES = 16 << 20
"""Largest file that a checker may write."""


def run_step(step: dict[str, Any], enter: Callable[[], None]) -> dict[str, Any]:
    """{"cause": "exit" | "cpu" | "wall" | "output", "code": wait status, "cpu": s, "out": text, "kept": base64} of one step."""
    os.mkdir(step["folder"])
    for name, text in step["files"].items():
        with open(f"{step['folder']}/{name}", "w") as file:
            file.write(text)
    mine, theirs = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os.chdir(step["folder"])
        os.dup2(os.open("/", os.O_RDONLY), 0)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        os.closerange(3, 256)
        os.environ.update(step["environment"])
        seconds = math.ceil(step["cpu"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
        become(step["command"], enter)
    os.close(theirs)
    out, cause = bytearray(), "exit"
    while True:
        left = began + step["wall"] - time.monotonic()
        if not select.select([mine], [], [], max(0.0, left))[0]:
            cause = "wall"
            break
        part = os.read(mine, 1 << 16)
        if not part:
            break
        out += part
        if len(out) > step["output"]:
            cause = "output"
            break
    if cause != "exit":
        os.kill(pid, signal.SIGKILL)
    os.close(mine)
    _, status, usage = os.wait4(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
        cause = "cpu"
    used = usage.ru_utime + usage.ru_stime
    text = bytes(out[: step["output"]]).decode("utf-8", "replace")
    kept = ""
    if step["keep"] and cause == "exit" and status == 0:
        with open(f"{step['folder']}/{step['keep']}", "rb") as file:
            kept = base64.b64encode(file.read(FILE_BYTES)).decode()
    return {"cause": cause, "code": status, "cpu": used, "out": text, "kept": kept}


def become(command: list[str], enter: Callable[[], None]) -> None:
    """Replace this process by the command, under the filter."""
    try:
        os.environ["HOME"] = "/"
        enter()
        os.execv(command[0], command)
    except BaseException as error:
        print(f"launcher: {error}", file=sys.stderr)
        os._exit(127)


def main() -> None:
    filter_fd, uid, memory_mb = map(int, sys.argv[1:4])
    for fd in set(range(3, 256)) - {filter_fd}:
        try:
            os.close(fd)
        except OSError:
            pass
    enter = filter_installer(filter_fd)
    if uid >= 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    if sys.argv[4] == "exec":
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
        become(sys.argv[5:], enter)
    steps, results = json.load(sys.stdin), []
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    for step in steps:
        results.append(run_step(step, enter))
        if results[-1]["cause"] != "exit" or results[-1]["code"] != 0:
            break
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
