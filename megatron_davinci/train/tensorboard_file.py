"""TensorBoard's event file, written by the caller's own thread.

torch's SummaryWriter writes in a thread of its own. Where the disk is full that thread dies with a traceback, and what
it held is lost without the run being told.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

_VERSION = "brain.Event:2"  # the first record of every event file


class TensorBoardFile:
    """Points of curves. Opening it drops, for who looks at the directory, the points from `first_step` on."""

    def __init__(self, directory: Path, first_step: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns():019d}.{socket.gethostname()}.{os.getpid()}"
        self._file = (directory / name).open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(file_version=_VERSION))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve. Raises OSError where they cannot be written."""
        for name, value in values.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self._file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """Close the file; every point is in it already."""
        self._file.close()
