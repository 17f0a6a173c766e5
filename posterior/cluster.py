"""Ray for the time of one command: start it, join a running one, or say in one sentence why neither works.

Inside a Ray job (`ray job submit`) the job manager sets RAY_ADDRESS and the process joins that cluster.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from actors.sampler import THREAD_POOL
from posterior.config import Resources
from posterior.config_load import ConfigError

HOME = Path(__file__).resolve().parents[1]
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray's job manager sets in the process it starts."""
PROBE_SECONDS = 5.0
STARTS = 3
"""Attempts to start a Ray of our own."""
SMALLEST_STORE = 75
"""MiB; Ray refuses less."""


class ClusterError(ConfigError):
    """Ray cannot be started or joined, or is too small; one sentence."""


@contextmanager
def cluster(resources: Resources, needed: Mapping[str, float]) -> Iterator[None]:
    """Ray for the time of a command; SIGTERM interrupts like Ctrl-C in it.

    needed: {"CPU": n, "GPU": m}. Raises ClusterError if Ray does not come up or can never place that.
    """
    # how often Ray Train looks whether its workers are done; the default of two seconds is felt at start and end
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would run every worker at nice 15, behind anything else on the machine
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # a variable that `ray job submit` sets for the job may be one of ours too: ours adds to it
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    address, source = resources.address, "resources.address"
    if os.environ.get("RAY_ADDRESS"):
        address, source = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    options: dict[str, Any] = {
        "log_to_driver": bool(os.environ.get("POSTERIOR_DEBUG")),
        "runtime_env": {"env_vars": worker_environment()},
    }
    if address == "local":
        check_store(resources.object_store_mb)
        # nobody takes this machine away from a Ray of our own: one process less to start
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        options |= {"include_dashboard": False, "object_store_memory": resources.object_store_mb * 2**20}
    elif address != "auto":
        check_address(address, source)
    import ray

    for tries_left in reversed(range(STARTS if address == "local" else 1)):
        try:
            ray.init(address=address, logging_level=logging.ERROR, **options)
            break
        except (Exception, SystemExit) as error:  # Ray leaves by SystemExit when a cluster does not answer
            # on a crowded machine Ray's processes take longer to come up than the half a minute it gives them
            if not (tries_left and "timed out during startup" in str(error)):
                raise ClusterError(_why_not(address, source, error)) from error
            print("Ray has not come up within its time; trying again", file=sys.stderr, flush=True)
    try:
        with sigterm_as_ctrl_c():
            check_size(needed, ray.cluster_resources())
            yield
    finally:
        ray.shutdown()


def worker_environment() -> dict[str, str]:
    """Variables of every worker process. In a Ray job, HOME and the current folder are the job's copy of the checkout."""
    paths = [str(HOME), os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        **THREAD_POOL,
        "TOKENIZERS_PARALLELISM": "false",
    }


def refuse_lost(path: Path | None) -> None:
    """Inside a Ray job: refuse a run directory that would go with the job's temporary folder. Raises ConfigError."""
    if JOB in os.environ and (path is None or not path.is_absolute()):
        given = "runs/ in the current folder" if path is None else str(path)
        raise ConfigError(
            f"a Ray job runs in a temporary copy of its working directory, where {given} would be lost: "
            "name a folder that stays, for example --out /absolute/path"
        )


def check_size(needed: Mapping[str, float], there: Mapping[str, float]) -> None:
    for kind, amount in needed.items():
        if amount > there.get(kind, 0.0):
            raise ClusterError(
                f"the run needs {amount:g} {kind}s but Ray has {there.get(kind, 0.0):g}; lower resources.samplers, "
                f"resources.learners or their {kind.lower()}s (fractions are allowed), or join a larger cluster with resources.address"
            )


def check_store(megabytes: int) -> None:
    """Raise ClusterError if this machine cannot give Ray an object store of that size."""
    import psutil

    free = psutil.virtual_memory().available // 2**20
    if not SMALLEST_STORE <= megabytes <= free:
        raise ClusterError(
            f"resources.object_store_mb is {megabytes}, but Ray needs at least {SMALLEST_STORE} and this machine has {free} MiB "
            "of memory free; choose a size between them or free some memory"
        )


def check_address(address: str, source: str) -> None:
    """Raise ClusterError unless something that speaks gRPC listens at `host:port` or `ray://host:port`.

    Ray itself would try for two minutes.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if "://" in host or not host or not port.isdecimal():
        raise ClusterError(
            f"{source} is {address}, which is no Ray address: give host:port as `ray start --head` prints it (not the dashboard's), "
            '"auto" or "local"'
        )
    mend = f"start one there with `ray start --head --port={port}`, or start one for this run with {source}=local"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS) as link:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            link.settimeout(PROBE_SECONDS)
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
            answer = link.recv(9)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ClusterError(f"no Ray answers at {address} ({source}): {reason}; {mend}") from error
    if len(answer) < 4 or answer[3] != 4:  # an HTTP/2 server opens with a SETTINGS frame
        raise ClusterError(f"what listens at {address} ({source}) is not Ray; {mend}")


def _why_not(address: str, source: str, error: BaseException) -> str:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
    if address == "local":
        return f"Ray cannot be started on this machine: {reason}"
    if address == "auto":
        return f"no running Ray was found ({source}=auto); start one with `ray start --head`, or use {source}=local"
    return (
        f"the Ray at {address} ({source}) cannot be joined: {reason}; is it running, and its token in RAY_AUTH_TOKEN?"
    )


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM (`ray job stop`, a batch system's time limit, `kill`) raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Context manager that counts SIGINT and SIGTERM instead of raising, so that none can fall between two statements."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, *_: Any) -> None:
        self.count += 1
        if self.count > 2:  # whoever should look is stuck
            raise KeyboardInterrupt
