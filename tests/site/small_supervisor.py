"""The supervisor over children of a few lines, started as a process by test_supervisor.py.

Each child answers its process id on its socket (control has none) and obeys a file `behaviour` in the run directory.
While there is a file `gone`, no child can be started.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hoosh_site.supervisor import Plan, ServeError, Supervisor, Timing

CHILD = """
import os, signal, socket, sys, time
from hoosh_site import child
role, index, fd, ready, parent, run_dir = sys.argv[1:7]
child.enter(int(parent))
pulse = child.Pulse(int(ready))
def note(text):
    with open(os.path.join(run_dir, "events"), "a") as events:
        events.write(f"{role}{index} {os.getpid()} {text}\\n")
def behaviour():
    try:
        return open(os.path.join(run_dir, f"{role}{index}")).read().split()
    except OSError:
        return []
stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
signal.signal(signal.SIGHUP, lambda *_: note("hup"))
note("start")
if "dies" in behaviour():
    sys.exit(3)
listener = socket.socket(fileno=int(fd)) if fd != "None" else None
if listener:
    listener.settimeout(0.02)
if "never-ready" not in behaviour():
    pulse.ready()
beat = 0
while not stopping or "stubborn" in behaviour():
    if time.monotonic() > beat + 0.1:
        pulse.beat()
        beat = time.monotonic()
    if listener is None:
        time.sleep(0.02)
        continue
    try:
        connection, _ = listener.accept()
        connection.sendall(b"%d\\n" % os.getpid())
        connection.close()
    except TimeoutError:
        pass
note("stop")
"""


def main() -> None:
    port, workers, run_dir = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])

    def command(role: str, index: int, socket_fd: int | None, ready_fd: int) -> list[str]:
        arguments = [role, str(index), str(socket_fd), str(ready_fd), str(os.getpid()), str(run_dir)]
        program = str(run_dir / "no-such-program") if (run_dir / "gone").exists() else sys.executable
        return [program, "-c", CHILD, *arguments]

    timing = Timing(
        drain_s=0.5,
        kill_s=0.5,
        control_stop_s=2,
        start_s=2,
        worker_silence_s=1.0,
        control_silence_s=1.0,
        quick_death_s=2,
        quick_deaths=2,
    )
    try:
        sys.exit(Supervisor(Plan("127.0.0.1", port, workers, run_dir, command, timing)).run())
    except ServeError as exc:
        sys.exit(str(exc))


if __name__ == "__main__":
    main()
