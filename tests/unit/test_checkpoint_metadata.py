"""Law: a checkpoint's pickle runs no code of anybody else's."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from data_prep import InputError
from megatron_davinci.checkpoint.metadata import read_metadata


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    with pytest.raises(InputError, match="system"):
        read_metadata(tmp_path / ".metadata")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(print), b"\x80\xff.", b"I1x\n."])
def test_what_megatron_never_writes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match="refused"):
        read_metadata(tmp_path / ".metadata")
