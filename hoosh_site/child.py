"""What every process started by the supervisor does first, and how it tells the supervisor that it is well.

The pipe carries one byte "r" once the process is ready and one "." a second from then on; a process that falls silent
is taken for hung and killed. Standard library only: the supervisor imports this too.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

READY, BEAT = b"r", b"."
_PR_SET_PDEATHSIG = 1


def enter(parent_pid: int | None, *, nice: int = 0) -> None:
    """Take a child's place in the process tree. `parent_pid` None: started by hand, there is no supervisor.

    Asks the kernel for SIGTERM when the supervisor dies and exits at once if it has died already, lowers the priority
    by `nice` and lets the signals through that the supervisor blocked for itself.
    """
    if parent_pid is not None:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent_pid:  # it died before the request above could take effect
            sys.exit(1)
    if nice:
        os.nice(nice)
    # A reload meant for control must not kill a process that is still starting; control installs its handler later.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


class Pulse:
    """The child's end of the pipe. Without a descriptor nothing is told."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    def ready(self) -> None:
        """Tell that requests are served from now on."""
        self._write(READY)

    def beat(self) -> None:
        """Tell that the process still turns. Call once a second."""
        self._write(BEAT)

    def _write(self, byte: bytes) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, byte)
        except BlockingIOError:
            pass  # the supervisor is busy or stopped; what it has not read yet says the same
        except OSError:
            self._fd = None  # the supervisor is gone, and this process is being told so
