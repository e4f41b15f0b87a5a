"""Checkpoints that would cost their reader gigabytes or hours, by some bytes in .metadata or common.pt.

`python tests/unit/pickle_bombs.py` reads each in a process of its own, and prints the highest cost beside its bound.
"""

import io
import os
import pickle
import resource
import struct
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

MAX_MEGABYTES, MAX_SECONDS = 300, 2.0
_PROTOCOL = b"\x80\x02"
Bomb = Callable[[Path], None]


def metadata(data: bytes, folder: Path) -> None:
    """A checkpoint whose .metadata is that pickle."""
    (folder / ".metadata").write_bytes(data)


def common(data: bytes, folder: Path, compression: int = zipfile.ZIP_STORED, more: int = 0) -> None:
    """A checkpoint whose common.pt holds that pickle."""
    with zipfile.ZipFile(folder / "common.pt", "w", compression) as archive:
        archive.writestr("common/data.pkl", data)
        for number in range(more):
            archive.writestr(f"common/{number:x}", b"")


def hash_bomb(depth: int = 60) -> bytes:
    """A tuple of itself twice, 60 deep, as a key: tuples do not remember their hash."""
    doubled = b"".join(b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(depth))
    return _PROTOCOL + b"}(N\x85q\x00" + doubled + b"Nu."


def laughs(depth: int = 60, around: bytes = b"%b.") -> bytes:
    """A list of itself twice, 60 deep: a walk over it, its text, or a comparison never ends."""
    doubled = b"".join(b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"e" for n in range(depth))
    return _PROTOCOL + around % (b"]q\x00" + doubled)


def calls_with_one_long_tuple() -> bytes:
    """A call costs as much as its arguments are many, and takes four bytes."""
    name = b"ctorch\nSize\nq\x01"
    return _PROTOCOL + b"(" + b"N" * 300_000 + b"tq\x00" + name + b"h\x01h\x00R" * 300_000 + b"."


def states_with_many_fields() -> bytes:
    """A record takes over a state as often as it is told to."""
    fields = b"".join(b"X\x06\x00\x00\x00%06dN" % n for n in range(100_000))
    record = b"ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81"
    return _PROTOCOL + b"}q\x00(" + fields + b"u" + record + b"h\x00b" * 1_000_000 + b"."


def keys_of_one_hash() -> bytes:
    """Multiples of 2**61 - 1 have the hash 0."""
    keys = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 200_000))
    return _PROTOCOL + b"}(" + keys + b"u."


def one_list_of_chunks_in_many_tensors() -> bytes:
    """Each tensor is checked, and all of them have the same hundred thousand chunks."""
    from torch import Size, float32
    from torch.distributed.checkpoint import metadata as torchs

    chunks = [torchs.ChunkStorageMetadata(Size([0]), Size([1]))] * 100_000
    tensor = torchs.TensorStorageMetadata(torchs.TensorProperties(float32), Size([1]), chunks)
    return pickle.dumps(torchs.Metadata({f"a{n}": tensor for n in range(100_000)}, None, {}))


def chunks_of_many_layers(folder: Path) -> None:
    """Chunks that each hold ten thousand layers, and are cut up into them."""
    _chunked(folder, "decoder.layers.mlp.linear_fc1.weight", [((0, n, 0), (9_999, 1, 1)) for n in range(20_000)],
             (9_999, 20_000, 1))  # fmt: skip


def chunks_over_each_other(folder: Path) -> None:
    """Pairs of them are many."""
    _chunked(folder, "decoder.final_layernorm.weight", [((n,), (2,)) for n in range(29_999)], (30_000,))


def _chunked(folder: Path, name: str, chunks: list[Any], shape: tuple[int, ...]) -> None:
    from torch import Size, bfloat16
    from torch.distributed.checkpoint import metadata as torchs
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    made = [torchs.ChunkStorageMetadata(Size(at), Size(sizes)) for at, sizes in chunks]
    tensor = torchs.TensorStorageMetadata(torchs.TensorProperties(bfloat16), Size(shape), made)
    places = {
        torchs.MetadataIndex(name, chunk.offsets): _StorageInfo("__0_0.distcp", n, 1) for n, chunk in enumerate(made)
    }
    metadata(pickle.dumps(torchs.Metadata({name: tensor}, None, places)), folder)


def endless_file(name: str, folder: Path) -> None:
    """Read it, and it never ends."""
    (folder / name).symlink_to("/dev/zero")


def silent_pipe(name: str, folder: Path) -> None:
    """Open it, and it never answers."""
    os.mkfifo(folder / name)


def entries_over_each_other(folder: Path) -> None:
    """Each entry of an archive names the same megabytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        pids = b"".join(b"(X\x07\x00\x00\x00storagectorch\nByteStorage\nX\x05\x00\x00\x00%05dX\x03\x00\x00\x00cpu"
                        b"J\x00\x00\x10\x00tQ" % n for n in range(10_000))  # fmt: skip
        archive.writestr("common/data.pkl", _PROTOCOL + b"(" + pids + b"t.")
        archive.writestr("common/data/00000", bytes(1 << 20))
        first = archive.getinfo("common/data/00000")
        for number in range(1, 10_000):
            info = zipfile.ZipInfo(f"common/data/{number:05d}")
            info.header_offset, info.CRC = first.header_offset, first.CRC
            info.file_size = info.compress_size = first.file_size
            archive.filelist.append(info)
    (folder / "common.pt").write_bytes(buffer.getvalue())


def _text(content: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(content)) + content


def called_again_and_again(name: bytes, arguments: bytes, times: int = 100_000) -> bytes:
    """A name called with the same arguments: what it copies, it copies each time."""
    return _PROTOCOL + arguments + b"q\x00c" + name + b"q\x01" + b"h\x01h\x00R" * times + b"."


def states_of(state: bytes, times: int = 100_000) -> bytes:
    """A record that is given one value as its state, which is no dict."""
    return (
        _PROTOCOL + state + b"q\x00ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81" + b"h\x00b" * times + b"."
    )


def ordered_dict_of_hashes() -> bytes:
    """A key by the way of a function's argument, which no check of keys sees."""
    pairs = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(1, 51))
    return _PROTOCOL + b"ccollections\nOrderedDict\nq\x00N\x85q\x01" + pairs + b"h\x00]h\x33N\x86a\x85R."


def many_tensors() -> bytes:
    """Each of one byte, and all of one storage."""
    pid = b"(" + _text(b"storage") + b"ctorch\nByteStorage\n" + _text(b"0") + _text(b"cpu") + b"K\x01tQ"
    arguments = b"(" + pid + b"K\x00K\x01\x85K\x01\x85\x89Nt"
    return called_again_and_again(b"torch._utils\n_rebuild_tensor_v2\n", arguments, 850_000)


def with_tensor(folder: Path) -> None:
    """A common.pt with a storage of one byte."""
    with zipfile.ZipFile(folder / "common.pt", "w") as archive:
        archive.writestr("common/data.pkl", many_tensors())
        archive.writestr("common/data/0", b"x")


def long_names_in_many_places(folder: Path) -> None:
    """A name of megabytes, which every place shares, and a sentence for each field of each."""
    from torch.distributed.checkpoint import metadata as torchs
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    name = "a" * (4 << 20)
    places = {torchs.MetadataIndex(name, None, n): _StorageInfo("__0_0.distcp", n, 1) for n in range(50_000)}
    metadata(pickle.dumps(torchs.Metadata({}, None, places)), folder)


def config_of_merges(folder: Path) -> None:
    """YAML whose mappings each take over the one before twice."""
    lines = ["model: {num_layers: 2}", "a0: &a0 {x: 1}"]
    lines += [f"a{n + 1}: &a{n + 1} {{<<: [*a{n}, *a{n}]}}" for n in range(40)]
    (folder / "run_config.yaml").write_text("\n".join(lines))
    metadata(_PROTOCOL + b"].", folder)


FLOOD = 8 << 20
IN_METADATA: dict[str, bytes] = {
    "a far place in the memo": _PROTOCOL + b"]r" + struct.pack("<I", 1 << 28) + b".",
    "a key that is hashed for ever": hash_bomb(),
    "a list of itself, as text": laughs(around=b"ctorch.serialization\n_get_layout\n%b\x85R."),
    "bytes of 16 GiB declared": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 34) + b".",
    "bytes of 2 GiB declared": b"\x80\x04B" + struct.pack("<I", 1 << 31) + b".",
    "text of 2 GiB declared": b"\x80\x04X" + struct.pack("<I", 1 << 31) + b".",
    "a byte array of 16 GiB declared": b"\x80\x05\x96" + struct.pack("<Q", 1 << 34) + b".",
    "a frame of an exabyte": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b".",
    "an integer of 2 GiB declared": _PROTOCOL + b"\x8b" + struct.pack("<i", (1 << 31) - 1) + b".",
    "an integer of a million digits": b"L" + b"9" * 1_000_000 + b"L\n.",
    "a name without an end": b"c" + b"a" * FLOOD,
    "a flood of lists": _PROTOCOL + b"]" * FLOOD,
    "a flood of dicts": _PROTOCOL + b"}" * FLOOD,
    "a flood of sets": b"\x80\x04" + b"\x8f" * FLOOD,
    "a flood of marks": _PROTOCOL + b"(" * FLOOD,
    "a flood of nothing": _PROTOCOL + b"N" * (60 << 20),
    "a flood of short texts": b"\x80\x04" + b"\x8c\x02ab" * FLOOD,
    "a flood of the memo": b"\x80\x04N" + b"\x94" * FLOOD,
    "lists in lists": _PROTOCOL + b"]" * 2_000_000 + b"a" * 1_999_999 + b".",
    "calls with one long tuple": calls_with_one_long_tuple(),
    "states with many fields": states_with_many_fields(),
    "keys of one hash": keys_of_one_hash(),
    "a text as the state of a record": states_of(_text(b"a" * (20 << 20))),
    "a list as the state of a record": states_of(b"](" + b"N" * 1_000_000 + b"e"),
    "states without an end": states_of(b"}", 2_400_000),
    "a text that is copied": called_again_and_again(
        b"torch.serialization\n_get_layout\n", _text(b"a" * FLOOD) + b"\x85"
    ),
    "a name of megabytes": b"\x80\x04" + _text(b"\x01" * (40 << 20) + "😀".encode()) + b"\x94h\x00\x93.",
    "a text with one wide character": _PROTOCOL + _text(b"a" * (46 << 20) + "😀".encode()) + b".",
    "names without an end": _PROTOCOL + b"ctorch\nint8\n" * 4_000_000,
    "a file too long": _PROTOCOL + bytes(65 << 20),
}
BOMBS: dict[str, Bomb] = {
    **{name: partial(metadata, data) for name, data in IN_METADATA.items()},
    "one list of chunks in many tensors": lambda folder: metadata(one_list_of_chunks_in_many_tensors(), folder),
    "chunks of many layers": chunks_of_many_layers,
    "chunks over each other": chunks_over_each_other,
    ".metadata is a device": partial(endless_file, ".metadata"),
    ".metadata is a pipe": partial(silent_pipe, ".metadata"),
    "common.pt is a device": partial(endless_file, "common.pt"),
    "common.pt is a pipe": partial(silent_pipe, "common.pt"),
    "common.pt: a list of itself": partial(common, laughs()),
    "common.pt: a list of itself as the name of a storage": partial(
        common, laughs(around=b"(X\x07\x00\x00\x00storageN%bNNtQ.")
    ),
    "common.pt: lists in lists": partial(common, IN_METADATA["lists in lists"]),
    "common.pt: a compressed flood": partial(common, bytes(1 << 30), compression=zipfile.ZIP_DEFLATED),
    "common.pt: many entries": partial(common, b"\x80\x02}.", more=120_000),
    "common.pt: entries over each other": entries_over_each_other,
    "common.pt: a key in an argument": partial(common, ordered_dict_of_hashes()),
    "common.pt: a text that is encoded": partial(
        common, called_again_and_again(b"_codecs\nencode\n", _text(b"a" * (4 << 20)) + _text(b"latin1") + b"\x86")
    ),
    "common.pt: many tensors": with_tensor,
    "a long name in many places": long_names_in_many_places,
    "run_config.yaml: merges": config_of_merges,
}


def read(folder: Path) -> str:
    """What the readers of conversion and of training say of a checkpoint, which they must not take."""
    from data_prep import InputError
    from megatron_davinci.weights.common_state import common_state
    from megatron_davinci.weights.foreign_configs import _bridge_fields
    from megatron_davinci.weights.stored_tensors import megatron_tensors

    try:
        assert not _bridge_fields(folder)
        if (folder / "common.pt").exists() or (folder / "common.pt").is_symlink():
            common_state(folder)
        odd = [name for name, tensor in megatron_tensors(folder).items() if not tensor.covered()]
        return f"the chunks of {odd[0]} do not make up its shape" if odd else ""
    except InputError as error:
        return str(error)


def measure(folder: Path) -> tuple[str, float, float]:
    """What is said; megabytes and seconds of CPU time that reading took."""
    import megatron_davinci.weights.stored_tensors  # noqa: F401 - is not measured

    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    said = read(folder)
    return said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, time.process_time() - started


def measure_in_child(bomb: str, folder: Path) -> tuple[str, float, float]:
    """The same in a process of its own: what one has taken, the next would have for nothing."""
    BOMBS[bomb](folder)
    with get_context("spawn").Pool(1) as pool:
        found: tuple[str, float, float] = pool.apply_async(measure, (folder,)).get(timeout=120)
        return found


def main() -> int:
    """Print a line for each, and the highest cost beside its bound."""
    found = {}
    for name in BOMBS:
        with tempfile.TemporaryDirectory() as folder:
            said, megabytes, seconds = found[name] = measure_in_child(name, Path(folder))
            print(f"{name:52} {megabytes:6.0f} MB {seconds:6.2f} s  {said.replace(folder, '')[:110]}")
    most, longest = max(row[1] for row in found.values()), max(row[2] for row in found.values())
    print(f"most memory {most:.0f} MB, at most {MAX_MEGABYTES}; longest {longest:.2f} s, at most {MAX_SECONDS:.0f}")
    return int(most > MAX_MEGABYTES or longest > MAX_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
