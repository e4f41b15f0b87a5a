"""Property: a pickle is read as pickle reads it, or refused with a reason; nothing of it runs, and it costs little."""

import io
import os
import pickle
import pickletools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint
from conftest import EFFORT
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_bombs import BOMBS, MAX_MEGABYTES, measure_in_child

from data_prep import InputError
from data_prep.io.errors import printable
from megatron_davinci.weights.metadata import Metadata, read_metadata, write_metadata
from megatron_davinci.weights.safe_pickle import (
    OPAQUE,
    Opaque,
    RefusedPickleError,
    check_extent,
    loads,
    refuse,
)
from megatron_davinci.weights.torch_objects import read_object, read_pickled

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**100), 2**100) | st.floats(allow_nan=False) | st.text() | st.binary()
)
KEYS = st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text() | st.binary()
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner) | st.dictionaries(KEYS, inner) | st.lists(inner).map(tuple) | st.sets(st.integers(0, 99))
    ),
)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@given(VALUES)
@settings(max_examples=200 * EFFORT)
def test_plain_values_are_read_as_pickle_reads_them(value: Any) -> None:
    data = b"before" + pickle.dumps(value) + b"after"
    assert loads(data, refuse, start=6) == (value, len(data) - 5)


@given(VALUES.filter(lambda value: "{" not in repr(value) or "set" not in repr(type(value))))
@settings(max_examples=100 * EFFORT)
def test_torchs_archives_of_plain_values_are_read_as_torch_reads_them(value: Any) -> None:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        expected = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
        found = read_object(buffer, 0, len(buffer.getvalue()))
    except RefusedPickleError as reason:
        assert "builtin" in str(reason)  # protocol 2 calls set
    else:
        assert found == expected == value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 1, 3)])
def test_tensors_are_read_as_torch_reads_them(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 9).to(dtype)
    value = {"a": tensor, "again": tensor, "part": torch.arange(12)[3:9].view(2, 3), "plain": [None, (1, 2.5)]}
    buffer = io.BytesIO()
    torch.save(value, buffer)
    for found in (read_object(buffer, 0, len(buffer.getvalue())), read_pickled(pickle.dumps(value), "no.module")):
        assert found["a"].dtype == dtype and found["a"].shape == shape and found["a"].equal(tensor)
        assert found["again"].equal(tensor) and found["part"].equal(value["part"]) and found["plain"] == value["plain"]


def test_tensors_that_megatron_core_0_19_has_pickled_are_read() -> None:
    """It puts a function of its own in the place of torch's, and so into every pickle of a tensor."""
    theirs = b"cmegatron.core.safe_globals\nsafe_load_from_bytes\n"
    pickled = pickle.dumps({"a": torch.arange(5)}, 2)
    either = pickled.replace(b"ctorch.storage\n_load_from_bytes\n", theirs)
    assert theirs in either and read_pickled(either, "no.module")["a"].equal(torch.arange(5))


@pytest.mark.parametrize(
    "tensor, reason",
    [
        (torch.randn(3, 5).t(), "not contiguous"),
        (torch.zeros(1).expand(1 << 40), "not contiguous"),
        (torch.nn.Parameter(torch.ones(1)), "names torch._utils._rebuild_parameter"),
        (torch.ones(2).to_sparse(), "names torch._utils._rebuild_sparse_tensor"),
    ],
)
def test_other_tensors_are_refused(tensor: torch.Tensor, reason: str) -> None:
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    with pytest.raises(RefusedPickleError, match=reason):
        read_object(buffer, 0, len(buffer.getvalue()))


@pytest.mark.parametrize("protocol", range(6))
def test_no_code_runs(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"a": [Attack(tmp_path / "ran")]}, protocol)
    pickle.loads(data)  # noqa: S301
    assert (tmp_path / "ran").exists(), "unpickled, it runs"
    (tmp_path / "ran").unlink()
    with pytest.raises(RefusedPickleError, match=r"names posix.system|instruction 0x"):
        loads(data, refuse)
    if protocol >= 2:
        value, _ = loads(data, lambda module, name: OPAQUE)
        assert isinstance(value["a"][0], Opaque)
    assert not (tmp_path / "ran").exists()


def test_a_malicious_description_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"names posix.system\): it was refused"):
        read_metadata(tmp_path / ".metadata")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps(print), b"\x80\xff.", b"I1x\n."])
def test_what_megatron_never_writes_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match="refused"):
        read_metadata(tmp_path / ".metadata")


def test_instructions_that_no_checkpoint_needs_are_refused() -> None:
    """All that pickle knows beside those that are known here, by their own numbers."""
    from megatron_davinci.weights.safe_pickle import _Machine

    others = [opcode for opcode in pickletools.opcodes if ord(opcode.code) not in _Machine.OPERATIONS]
    assert {opcode.name for opcode in others} >= {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "BINBYTES8", "BYTEARRAY8", "DUP"}
    for opcode in others:
        if opcode.name != "STOP":
            with pytest.raises(RefusedPickleError, match=f"instruction {ord(opcode.code):#04x}, which no checkpoint"):
                loads(b"\x80\x04N" + opcode.code.encode("latin1") + bytes(16) + b".", refuse)


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_cost_little(bomb: str, tmp_path: Path) -> None:
    """Time is not asserted: what never ends runs into the limit of `measure_in_child`."""
    said, megabytes, _ = measure_in_child(bomb, tmp_path)
    assert any(word in said for word in ("refused", "damaged", "cuts its tensors", "do not make up"))
    assert megabytes < MAX_MEGABYTES


def test_altered_pickles_are_read_or_refused(tmp_path: Path) -> None:
    """Whatever bytes lie there, no other exception."""
    draw = random.Random(5)
    sizes = torch.Size([2, 3])
    from megatron_davinci.weights.metadata import (
        BytesStorageMetadata,
        ChunkStorageMetadata,
        MetadataIndex,
        StorageInfo,
        TensorProperties,
        TensorStorageMetadata,
    )

    tensor = TensorStorageMetadata(TensorProperties(torch.float32), sizes, [ChunkStorageMetadata(sizes, sizes)])
    places = {MetadataIndex("a", sizes): StorageInfo("__0_0.distcp", 0, 9), MetadataIndex("b"): StorageInfo("f", 0, 9)}
    path = tmp_path / ".metadata"
    write_metadata(Metadata({"a": tensor, "b": BytesStorageMetadata()}, storage_data=places), path)
    whole, buffer = path.read_bytes(), io.BytesIO()
    torch.save({"a": torch.ones(3), "b": [1, 2.5, None, "x"]}, buffer)
    for _ in range(2000 * EFFORT):
        for data in (whole, buffer.getvalue()):
            altered = bytearray(data)
            for _ in range(draw.randint(1, 4)):
                altered[draw.randrange(len(altered))] = draw.randrange(256)
            altered = altered[: draw.randint(1, len(altered))] if draw.random() < 0.2 else altered
            path.write_bytes(altered)
            try:
                read_metadata(path)
            except InputError as error:
                assert "refused" in str(error) or "damaged" in str(error)
            try:
                read_object(io.BytesIO(bytes(altered)), 0, len(altered))
            except RefusedPickleError as error:
                assert str(error).startswith(("it", "its", "a tensor", "what it builds"))


def test_states_of_modules_and_paths_are_read(tmp_path: Path) -> None:
    """torch gives its dicts of states attributes, and notes where it saved."""
    buffer = io.BytesIO()
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, buffer)
    assert read_object(buffer, 0, len(buffer.getvalue()))["model"].keys() == {"weight", "bias"}
    torch.distributed.checkpoint.save({"w": torch.ones(2)}, checkpoint_id=tmp_path / "own", no_dist=True)
    assert read_metadata(tmp_path / "own" / ".metadata").state_dict_metadata.keys() == {"w"}


def test_messages_are_shown_not_sent() -> None:
    assert printable("a\x1b]0;x\x07\nb é") == "a\\x1b]0;x\\x07\\nb é" and len(printable("x" * 10**6)) == 2000


def test_extent() -> None:
    check_extent({"a": [{"b": (1, 2)}] * 100})
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RefusedPickleError, match="nests more than 64"):
        check_extent(deep)
