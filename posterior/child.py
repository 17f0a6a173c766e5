"""A `posterior` process that belongs to another one: it hears Ctrl-C through its parent only, and ends with it."""

from __future__ import annotations

import ctypes
import signal
import subprocess

PATIENCE = 120.0
"""Seconds that a run may take to end its step and write its checkpoint before it is killed."""

_LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG = 1


def prepare() -> None:
    """In the child: hear SIGINT, which Ray's processes block, and end with the parent even if that is killed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if hasattr(_LIBC, "prctl"):
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def end(process: subprocess.Popen[bytes], patience: float = PATIENCE) -> None:
    """Ask the run to end with a checkpoint, as Ctrl-C does; kill it if it does not within `patience` seconds."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGINT)
    try:
        process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
