"""Reading and writing files so that a reader never sees a half-written one."""

import errno
import fcntl
import gzip
import os
import shutil
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import orjson
import zstandard
from xxhash import xxh3_64

from data_prep.io.errors import InputError

PART = ".part"
_CHUNK_BYTES = 1 << 20
_FED_BYTES = 2048  # of zstd at a time: 4 bytes may stand for 128 KiB
_LONGEST_WINDOW = 1 << 31  # that zstd itself can write (--long=31), as public dumps are
_MAX_LINE_BYTES = 128 << 20
_MAX_WHOLE_BYTES = 1 << 30  # of a file that is read as a whole: an index of a corpus's checksums has some MB


def part_of(path: Path) -> Path:
    """The name of a file or a directory while it is not yet whole."""
    return path.with_name(path.name + PART)


def plain_name(path: Path) -> str:
    """The name of a file as text that JSON can hold: names of files are any bytes."""
    return os.fsencode(path.name).decode(errors="backslashreplace")


def json_bytes(value: Any) -> bytes:
    """Readable JSON, always the same for the same value."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def publish(part: Path, path: Path) -> None:
    """Give what is whole its name, and have it there after a loss of power. Files in a directory are flushed too."""
    flush_tree(part)
    part.replace(path)
    _flush(path.parent)


def flush_tree(part: Path) -> None:
    """Have a file, or a directory with all that is in it, on disk."""
    for each in _files_of(part):
        _flush(each)


def _files_of(part: Path) -> list[Path]:
    if not part.is_dir():
        return [part]
    return [*(each for each in part.rglob("*") if each.is_dir() or each.is_file()), part]


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some file systems flush no directories
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON; the file appears by rename."""
    part = part_of(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(json_bytes(value))
    publish(part, path)


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of an output, where the file system has locks. Raises InputError while another process makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: int | None = None
    try:
        lock = take_lock(lock_of(path), busy=f"another process is writing {path}: wait for it to end")
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
            raise
    try:
        yield
    finally:
        lock_of(path).unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


def lock_of(path: Path) -> Path:
    """The file that is locked while an output is made; a killed process leaves it."""
    return path.with_name(f"{path.name}.lock{PART}")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file that appears under its name only when the block ends well; one process at a time makes it.

    Raises InputError where it is there already: nothing is ever overwritten.
    """
    with only_writer(path):
        refuse_existing(path)
        part = part_of(path)
        try:
            yield part
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        publish(part, path)


def read_regular_file(path: Path, limit: int) -> bytes:
    """All bytes of a file that may be anybody's: a device or a pipe would give bytes for ever.

    Raises InputError where it is not there, no regular file, or longer than `limit` bytes.
    """
    check_regular_file(path)
    if (size := path.stat().st_size) > limit:
        raise InputError(f"{path} has {size:,} bytes, more than {limit:,}: it was refused")
    return path.read_bytes()


def check_regular_file(path: Path) -> None:
    """Raise InputError where a path is none, or no regular file."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no regular file: it was refused")


def refuse_link_outside(path: Path, root: Path | None = None) -> Path:
    """The path itself. Raises InputError where it leads out of `root`, or of its own directory: a tree that others made
    may not have files of this machine read as its own. Hugging Face's cache, snapshots/HASH to blobs/, is none.
    """
    inside = (root or path.parent).resolve()
    target = path.resolve()
    if inside in target.parents or target == inside:
        return path
    if any(each.name == "snapshots" and target.parent == each.parent / "blobs" for each in inside.parents):
        return path
    raise InputError(f"{path} is a link that leads out of {root or path.parent}: put the file itself there")


def read_json(path: Path) -> Any:
    """Parse a JSON file; InputError names the file when it is missing, is not JSON, or is longer than any should be."""
    try:
        return orjson.loads(_read_whole(path))
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None


def read_text(path: Path) -> str:
    """Text of a file; InputError when it is missing or is not UTF-8."""
    try:
        return _read_whole(path).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from None


def _read_whole(path: Path) -> bytes:
    if not path.exists():
        raise InputError(f"{path} does not exist")
    return read_regular_file(path, _MAX_WHOLE_BYTES)


def refuse_existing(path: Path | None) -> None:
    """Raise InputError when an output is there already: nothing is ever overwritten."""
    if path is not None and path.exists():
        raise InputError(f"{path} already exists: remove it, or choose another name")


def nearest_existing(path: Path) -> Path:
    """The path itself, or the closest of its parents that is there."""
    absolute = path.absolute()
    return next(each for each in (absolute, *absolute.parents) if each.exists())


def shortest_names(paths: Iterable[Path]) -> dict[Path, str]:
    """Resolved path -> the end of it that none of the others shares: most often its last part."""
    resolved = list(dict.fromkeys(path.resolve() for path in paths))
    return {path: _shortest_end(path, resolved) for path in resolved}


def _shortest_end(path: Path, others: Sequence[Path]) -> str:
    for count in range(1, len(path.parts)):
        if [other.parts[-count:] for other in others].count(path.parts[-count:]) == 1:
            return str(Path(*path.parts[-count:]))
    return str(path)


def refuse_occupied(path: Path) -> None:
    """Raise InputError when a directory to be made already holds something."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} already exists: remove it, or name another")


def make_parent(path: Path) -> Path:
    """The directory that a file is to lie in, made where it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A directory that appears under its name only when the block ends well.

    Raises InputError when `path` already holds something: nothing is ever overwritten.
    """
    path = path.resolve()  # "." has no name to put a suffix to
    with only_writer(path):
        refuse_occupied(path)
        part = part_of(path)
        if part.exists():
            shutil.rmtree(part)  # an earlier run was killed
        part.mkdir(parents=True)
        try:
            yield part
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        publish(part, path)


@contextmanager
def jsonl_writer(path: Path) -> Iterator["JsonlWriter"]:
    """Write JSON Lines compressed with zstd; the file appears by rename."""
    part = part_of(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as raw:
            compressor = zstandard.ZstdCompressor(level=6, write_checksum=True)
            with compressor.stream_writer(raw, closefd=False) as stream:
                yield JsonlWriter(stream)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    publish(part, path)


class JsonlWriter:
    """Counts what it writes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.count = 0

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        self._stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
        self.count += 1


def read_jsonl(path: Path, parse: Callable[[bytes], Any] = orjson.loads) -> Iterator[dict[str, Any]]:
    """Objects of a .jsonl, .jsonl.gz or .jsonl.zst file, one at a time; InputError names file and line.

    `parse`: json.loads where integers beyond 64 bits are to stay what they are; orjson makes floats of them.
    """
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = parse(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}, is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}, holds a {type(record).__name__}; it must be a JSON object")
        yield record


def _lines(path: Path) -> Iterator[bytes]:
    rest, held = list[bytes](), 0
    for chunk in read_chunks(path, _CHUNK_BYTES):
        first, *lines = chunk.split(b"\n")
        rest.append(first)
        held += len(first)
        if held > _MAX_LINE_BYTES:
            raise InputError(f"{path} has a line of more than {_MAX_LINE_BYTES >> 20} MiB: it was refused")
        if lines:
            yield b"".join(rest)
            yield from lines[:-1]
            rest, held = [lines[-1]], len(lines[-1])
    yield b"".join(rest)


def read_chunks(path: Path, chunk_bytes: int, skip: int = 0) -> Iterator[bytes]:
    """Contents of a plain, .gz or .zst file from byte `skip` of the contents on, in pieces of about `chunk_bytes`.

    Raises InputError where the file is missing, or the compressed stream is not whole.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is no file")
    if path.suffix in (".gz", ".zst") and path.stat().st_size == 0:
        raise InputError(f"{path} is empty, which no compressed file is: make or fetch it again")
    try:
        with path.open("rb") as raw:
            if path.suffix == ".zst":
                yield from _drop(_zstd_chunks(raw, chunk_bytes), skip)
                return
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            file.seek(skip)
            yield from iter(lambda: file.read(chunk_bytes), b"")
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(f"{path} is cut off or damaged ({error}): make or fetch it again") from None


def _drop(chunks: Iterator[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        if skip < len(chunk):
            yield chunk[skip:]
        skip = max(0, skip - len(chunk))


def _zstd_chunks(raw: IO[bytes], chunk_bytes: int) -> Iterator[bytes]:
    """Fed with so little at a time that a bomb of 32,000 to 1 gives megabytes; zstandard's own reader, which takes a
    size, ends where the last frame is cut off without a word.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
    frame = decompressor.decompressobj()
    pieces, held = list[bytes](), 0
    begun = False
    while block := raw.read(_FED_BYTES):
        while block:
            begun = True
            pieces.append(frame.decompress(block))
            held += len(pieces[-1])
            block = b""
            if frame.eof:
                block, frame, begun = frame.unused_data, decompressor.decompressobj(), False
        if held >= chunk_bytes:
            whole = memoryview(b"".join(pieces))
            yield from (bytes(whole[at : at + chunk_bytes]) for at in range(0, held, chunk_bytes))
            pieces, held = [], 0
    if begun:
        raise EOFError("the last frame is not complete")
    yield b"".join(pieces)


def take_lock(path: Path, lock_file: Callable[[int, int], Any] = fcntl.flock, busy: str | None = None) -> int:
    """Hold a lock file: close the descriptor to let go. Raises InputError while another process holds it.

    `lock_file`: fcntl.flock, whose lock children share, or fcntl.lockf, whose lock is this process's own; `busy`: the
    sentence for who comes second.
    """
    busy = busy or f"another process is writing {path.with_suffix('').stem}: wait for it to end"
    while True:
        lock = os.open(path, os.O_CREAT | os.O_RDWR)
        try:
            lock_file(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        except FileNotFoundError:
            pass  # the one who held it has just removed it
        except (BlockingIOError, PermissionError):  # by POSIX, either
            os.close(lock)
            raise InputError(busy) from None
        except OSError:
            os.close(lock)
            raise
        os.close(lock)  # the one who held it has just removed it


def block_checksums(path: Path, block_bytes: int) -> list[str]:
    """xxh3 (64 bit, hexadecimal) of each block of a file; the last one may be shorter."""
    digests = []
    with path.open("rb") as file:
        size = path.stat().st_size
        for start in range(0, size, block_bytes):
            file.seek(start)
            digest = xxh3_64()
            for at in range(0, min(block_bytes, size - start), _CHUNK_BYTES):  # small pieces stay in the cache
                digest.update(file.read(min(_CHUNK_BYTES, block_bytes - at)))
            digests.append(digest.hexdigest())
    return digests
