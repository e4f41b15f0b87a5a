"""One process with limits: time, output, disk; memory and processes by its control group."""

import os
import select
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Literal

from data_prep.environments.sandbox.base import Limits, Result, SandboxFailed
from data_prep.environments.sandbox.cgroups import Cgroup

STATUS_FILE = "{status}"
_BLOCK = 1 << 16
_LOOK_SECONDS = 0.25  # between two looks at the disk
_COULD_NOT_BEGIN = 125  # of the shell that enters the control group
_GONE_SECONDS = 10.0

Killed = Literal["time", "memory", "disk"] | None


def run_confined(argv: Sequence[str], limits: Limits, writes: Path, stdin: bytes = b"") -> Result:
    """Run a program with an empty environment; `writes` is the directory below which it writes.

    A word STATUS_FILE stands for a descriptor to which bubblewrap writes the exit status of what it ran: where it
    writes none, it could not run it. Raises SandboxFailed where a program could not begin.
    """
    if Path(argv[0]).is_absolute() and not Path(argv[0]).exists():
        raise SandboxFailed(f"{argv[0]} is not there")
    group = Cgroup(limits)
    try:
        return _run(argv, limits, writes, stdin, group)
    except FileNotFoundError as error:
        raise SandboxFailed(f"{error.filename} is not installed") from None
    finally:
        group.close()


def _run(argv: Sequence[str], limits: Limits, writes: Path, stdin: bytes, group: Cgroup) -> Result:
    started = time.monotonic()
    told, telling = os.pipe()
    process = subprocess.Popen(
        ["/bin/sh", "-c", _entering(limits, group), "sh", *(str(telling) if w == STATUS_FILE else w for w in argv)],
        pass_fds=[telling],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd="/",
        env={},  # the first process of a sandbox shows its environment to all others
    )
    os.close(telling)
    output = _BothEnds(process, limits.output_bytes)
    feeding = threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True)
    feeding.start()
    try:
        killed = _watch(process, limits, writes, started)
    finally:
        if process.poll() is None:
            end_session(process)
    output.join()
    feeding.join()
    if killed is None and process.returncode and group.out_of_memory:
        killed = "memory"
    with os.fdopen(told, "rb") as status:
        begun = STATUS_FILE not in argv or b"exit-code" in status.read(_BLOCK)
    refused = process.returncode == _COULD_NOT_BEGIN and STATUS_FILE not in argv and "rror" in output.text
    if refused or not (begun or killed):
        raise SandboxFailed(f"{argv[0]} could not be started: {output.text[-300:].strip()}")
    return Result(process.returncode, output.text, time.monotonic() - started, output.truncated, killed)


def _entering(limits: Limits, group: Cgroup) -> str:
    """A shell's lines: into the group, then the program in the shell's place."""
    enter = "".join(f"echo $$ > {shlex.quote(str(file))} && " for file in group.entrances)
    return f'{{ {enter}ulimit -f {limits.file_bytes // 512} && ulimit -c 0; }} || exit {_COULD_NOT_BEGIN}; exec "$@"'


def _feed(pipe: IO[bytes] | None, content: bytes) -> None:
    assert pipe is not None
    try:
        pipe.write(content)
        pipe.close()
    except BrokenPipeError:
        pass  # it does not read


def _watch(process: "subprocess.Popen[bytes]", limits: Limits, writes: Path, started: float) -> Killed:
    """Wait for the end of a process, or end it."""
    before = disk_bytes(writes)
    pause = _LOOK_SECONDS
    while True:
        left = started + limits.seconds - time.monotonic()
        if _has_ended(process, max(0.0, min(pause, left))):
            written = disk_bytes(writes)  # since the last look too
            return "disk" if written > max(limits.disk_bytes, before) else None
        looked = time.monotonic()
        killed: Killed = "time" if looked >= started + limits.seconds else None
        if killed is None and disk_bytes(writes) > max(limits.disk_bytes, before):
            killed = "disk"
        if killed is not None:
            end_session(process)
            return killed
        pause = max(_LOOK_SECONDS, 10 * (time.monotonic() - looked))  # a tree of many files takes long to measure


def _has_ended(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether a process ends within this time. The kernel tells: subprocess's own wait sleeps 50 ms too long."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()  # select knows no descriptor above 1,023
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(1000 * seconds):
            return False
    finally:
        os.close(descriptor)
    process.wait()
    return True


def end_session(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its session; the other processes of a sandbox end with its first one."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def disk_bytes(path: Path) -> int:
    """What lies below a directory takes so much room; trees may be of any depth."""
    told = subprocess.run(["du", "-s", "--block-size=1", str(path)], capture_output=True, text=True, check=False)
    words = told.stdout.split()
    return int(words[0]) if words else 0


class _BothEnds:
    """Reads all of a process's output, and keeps the beginning and the end of it."""

    def __init__(self, process: "subprocess.Popen[bytes]", limit: int) -> None:
        assert process.stdout is not None
        self._pipe, self._half = process.stdout, limit // 2
        self._start, self._end, self._dropped = bytearray(), bytearray(), 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while block := os.read(self._pipe.fileno(), _BLOCK):
            room = self._half - len(self._start)
            self._start += block[:room] if room > 0 else b""
            self._end += block[max(0, room) :]
            if len(self._end) > 2 * self._half:
                self._dropped += len(self._end) - self._half
                del self._end[: -self._half]

    def join(self) -> None:
        """Wait for the end of the output, which a process that outlives its sandbox cannot hold up for ever."""
        self._thread.join(_GONE_SECONDS)
        if not self._thread.is_alive():
            self._pipe.close()
        over = len(self._end) - self._half
        if over > 0:
            self._dropped += over
            del self._end[:over]

    @property
    def truncated(self) -> bool:
        return self._dropped > 0

    @property
    def text(self) -> str:
        gap = f"\n[{self._dropped} bytes are left out]\n".encode() if self._dropped else b""
        return (bytes(self._start) + gap + bytes(self._end)).decode("utf-8", "replace")
