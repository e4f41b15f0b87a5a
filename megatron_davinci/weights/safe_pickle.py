"""The only reader of pickles that lie in checkpoints: it runs no code of theirs, in bounded memory and time.

Python's unpickler, and torch's, call what a pickle names, and allocate what it declares. A pickle is read here by a
small machine: a stack, a memo, and the instructions that pickle writes for plain values, containers and records. What a
name stands for, the caller says (`find`); only a `Constructor` can be called. Everything else is refused by name: other
instructions, keys whose hash or comparison costs more than the key, arguments and memory beyond any checkpoint's.
"""

import gc
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

MAX_BYTES = 64 << 20
"""Of a pickle; `.metadata` of a 72B model with its optimizer on eight tensor ranks has 5 MB."""
_MAX_INSTRUCTIONS = 4_000_000  # about two seconds; `.metadata` of that model has 2.4 million
_MAX_MEMORY = 192 << 20  # bytes of what is built, by the estimates below
_MAX_ARGUMENTS = 16
_MAX_KEY = 1 << 53  # larger integers can be chosen to have one hash
_MAX_GLOBALS = 100_000  # a pickler remembers what it has named
_MAX_NAME = 400
_UINT, _INT, _SHORT, _FLOAT = map(struct.Struct, ("<I", "<i", "<H", ">d"))
_MAX_DEPTH, _MAX_VALUES = 64, 500_000  # of what `plain` gives
# Bytes that values take, on the high side; a reference, an entry of a dict, a record with its dict.
_REFERENCE, _NUMBER, _CONTAINER, _ENTRY, _RECORD, _SET = 8, 40, 72, 100, 200, 224


class RefusedPickleError(Exception):
    """What a pickle does that no checkpoint's does."""


@dataclass(frozen=True, slots=True)
class Constructor:
    """A name that a pickle may call, with up to 16 positional arguments; its work must not grow with their lengths."""

    call: Callable[..., Any]
    size: int = _RECORD
    """Bytes that each call takes, on the high side; those of a `bytes` object come on top."""


class Record:
    """What a pickle may give a state (BUILD), and use as a key: it is hashed and compared by identity."""

    def __setstate__(self, state: Any) -> None:
        """Take over the state; its work must not grow with the state's length."""
        raise NotImplementedError

    __hash__ = object.__hash__


class Opaque(Record):
    """Stands for an object of a class that nobody here needs; `state` is what the pickle gave it."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


OPAQUE = Constructor(lambda *_: Opaque())
Find = Callable[[str, str], Any]


def loads(data: bytes, find: Find, persistent: Callable[[Any], Any] | None = None, start: int = 0) -> tuple[Any, int]:
    """The value of the pickle that begins at `start`, and where it ends. Raises RefusedPickleError.

    `find` gives what a module's name stands for, a Constructor or a value, and raises RefusedPickleError for any
    other; `persistent` what a persistent id stands for.
    """
    if len(data) - start > MAX_BYTES:
        raise RefusedPickleError(f"it has {len(data) - start:,} bytes, more than {MAX_BYTES:,}")
    machine = _Machine(data, start, find, persistent)
    with _no_collection():
        try:
            return machine.run(), machine.at
        except RefusedPickleError:
            raise
        except Exception as error:  # a damaged pickle raises nearly anything
            raise RefusedPickleError(f"it is damaged at byte {machine.at} ({type(error).__name__})") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Millions of new containers, of which none is garbage yet, would be looked through again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def refuse(module: str, name: str) -> Any:
    """Say that a pickle names what it must not: the end of every `find`."""
    raise RefusedPickleError(f"it names {ascii(f'{module[:100]}.{name[:100]}')[1:-1]}")


def check_extent(value: Any) -> None:
    """Raise RefusedPickleError where nested lists, tuples and dicts are deeper, or hold more, than a caller can walk.

    A pickle of a hundred bytes can name one list so often that a walk over what holds it would never end.
    """
    seen, waiting = 0, [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        inner = list(each.values()) if isinstance(each, dict) else each if isinstance(each, list | tuple) else ()
        seen += 1 + len(inner)
        if depth > _MAX_DEPTH or seen > _MAX_VALUES:
            raise RefusedPickleError(f"it nests more than {_MAX_DEPTH} containers, or {_MAX_VALUES:,} values")
        waiting.extend((child, depth + 1) for child in inner if isinstance(child, list | tuple | dict))


class _Machine:
    """Reads one pickle, instruction by instruction."""

    OPERATIONS: ClassVar[dict[int, tuple[Callable[["_Machine"], None], int]]] = {}
    """What an instruction does, and the bytes that it takes at least."""

    def __init__(self, data: bytes, start: int, find: Find, persistent: Callable[[Any], Any] | None) -> None:
        self.data, self.at = data, start
        self._find, self._persistent = find, persistent
        self.stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: list[Any] = []
        self._room = _MAX_MEMORY - len(data)
        self._names = self._without_state = 0

    def run(self) -> Any:
        """The value that is left when the pickle stops."""
        data, operations = self.data, self.OPERATIONS
        for _ in range(_MAX_INSTRUCTIONS):
            code = data[self.at]
            self.at += 1
            if code not in operations:
                break
            operation, size = operations[code]
            operation(self)
            self._room -= size
            if self._room < 0:
                self._check_room()
        else:
            raise RefusedPickleError(f"it has more than {_MAX_INSTRUCTIONS:,} instructions")
        if code != pickle.STOP[0]:
            raise RefusedPickleError(f"it has the instruction {code:#04x}, which no checkpoint needs")
        return self.stack.pop()

    def _check_room(self) -> None:
        if self._room < 0:
            raise RefusedPickleError(f"what it builds takes more than {_MAX_MEMORY:,} bytes")

    # Bytes of the pickle

    def skip(self, size: int) -> None:
        """Pass over bytes that say nothing here."""
        self.at += size

    def byte(self) -> int:
        """The next one."""
        self.at += 1
        return self.data[self.at - 1]

    def number(self, form: struct.Struct) -> Any:
        """The next one of a form."""
        (number,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return number

    def take(self, size: int) -> bytes:
        """The next `size` bytes, accounted for."""
        if size > len(self.data) - self.at:
            raise RefusedPickleError(f"it declares {size:,} bytes, of which it has {len(self.data) - self.at:,}")
        self._room -= 5 * size  # a copy, and four bytes for each character
        self._check_room()
        self.at += size
        return self.data[self.at - size : self.at]

    # Containers

    def text(self, size: int) -> None:
        """Push text."""
        self.stack.append(str(self.take(size), "utf-8", "surrogatepass"))

    def long(self) -> None:
        """Push an integer of up to 255 bytes."""
        self.stack.append(int.from_bytes(self.take(self.byte()), "little", signed=True))

    def mark(self) -> None:
        """Begin a stack of its own."""
        self._outer.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self._outer.pop()
        self._room -= _REFERENCE * len(items)
        return items

    def tuple(self, size: int) -> None:
        """Push the last values as a tuple."""
        items = (*self.stack[-size:],)
        if len(items) < size:
            raise IndexError
        self.stack[-size:] = [items]

    def tuple_from_mark(self) -> None:
        """Push what was pushed since the last mark as a tuple."""
        items = self.pop_mark()
        self.stack.append((*items,))

    def append(self, items: list[Any]) -> None:
        """To a list."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Record):
            raise RefusedPickleError(f"it appends to a {type(target).__name__}")

    def set_items(self, items: list[Any]) -> None:
        """Keys and values in turn, of a dict."""
        target = self.stack[-1]
        self._room -= _ENTRY * len(items) // 2
        if type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_checked_key(key)] = value
        elif not isinstance(target, Record):
            raise RefusedPickleError(f"it sets an item of a {type(target).__name__}")

    def add_items(self, items: list[Any]) -> None:
        """To a set."""
        target = self.stack[-1]
        self._room -= _ENTRY * len(items)
        if type(target) is not set:
            raise RefusedPickleError(f"it adds an item to a {type(target).__name__}")
        target.update(map(_checked_key, items))

    def pop_pair(self) -> list[Any]:
        """A key and its value."""
        value = self.stack.pop()
        return [self.stack.pop(), value]

    # The memo

    def memoize(self) -> None:
        """Remember the last value under the next number."""
        self._memo.append(self.stack[-1])

    def put(self, number: int) -> None:
        """Remember the last value under a number, which picklers count up."""
        if number != len(self._memo):
            raise RefusedPickleError(f"it puts number {number:,} into its memo after {len(self._memo):,}")
        self._memo.append(self.stack[-1])

    def get(self, number: int) -> None:
        """Push what was put."""
        self.stack.append(self._memo[number])

    # Names, and what they make

    def name(self) -> None:
        """Push what a name in the pickle's own text stands for."""
        ends = [self.data.index(b"\n", self.at, self.at + _MAX_NAME)]
        ends.append(self.data.index(b"\n", ends[0] + 1, ends[0] + _MAX_NAME))
        module, name = self.data[self.at : ends[0]], self.data[ends[0] + 1 : ends[1]]
        self.at = ends[1] + 1
        self._push_name(module.decode(), name.decode())

    def pushed_name(self) -> None:
        """Push what a name on the stack stands for."""
        module, name = self.pop_pair()
        if type(name) is not str or type(module) is not str:
            raise RefusedPickleError("it names something by what is no text")
        if len(module) + len(name) > _MAX_NAME:
            raise RefusedPickleError("it names something by a text without an end")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        self._names += 1
        if self._names > _MAX_GLOBALS:
            raise RefusedPickleError(f"it names more than {_MAX_GLOBALS:,} things")
        self.stack.append(self._find(module, name))

    def call(self) -> None:
        """Push what a Constructor makes."""
        target, arguments = self.pop_pair()
        if not isinstance(target, Constructor):
            raise RefusedPickleError(f"it calls a {type(target).__name__}")
        if type(arguments) is not tuple or len(arguments) > _MAX_ARGUMENTS:
            raise RefusedPickleError(f"it calls something with more than {_MAX_ARGUMENTS} arguments")
        made = target.call(*arguments)
        self._room -= target.size + (len(made) if type(made) is bytes else 0)
        self._without_state += 1
        self.stack.append(made)

    def build(self) -> None:
        """Give a record its state."""
        state, target = self.stack.pop(), self.stack[-1]
        self._without_state -= 1
        if self._without_state < 0:
            raise RefusedPickleError("it gives more states than it has records")
        if isinstance(target, Record):
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of an OrderedDict, which say nothing here
            raise RefusedPickleError(f"it gives a state to a {type(target).__name__}")

    def persistent_id(self) -> None:
        """Push what lies outside the pickle."""
        if self._persistent is None:
            raise RefusedPickleError("it refers to something outside itself")
        self.stack.append(self._persistent(self.stack.pop()))


def _checked_key(key: Any) -> Any:
    """A key that is hashed and compared in no time: text, bytes, small integers, None, records."""
    if type(key) in (str, bytes, bool, type(None)) or isinstance(key, Record):
        return key
    if type(key) is int and abs(key) < _MAX_KEY:
        return key
    raise RefusedPickleError(f"it has a {type(key).__name__} for a key")


_Machine.OPERATIONS = {
    pickle.PROTO[0]: (lambda m: m.skip(1), 0),
    pickle.FRAME[0]: (lambda m: m.skip(8), 0),
    pickle.NONE[0]: (lambda m: m.stack.append(None), _REFERENCE),
    pickle.NEWTRUE[0]: (lambda m: m.stack.append(True), _REFERENCE),
    pickle.NEWFALSE[0]: (lambda m: m.stack.append(False), _REFERENCE),
    pickle.BININT[0]: (lambda m: m.stack.append(m.number(_INT)), _NUMBER),
    pickle.BININT1[0]: (lambda m: m.stack.append(m.byte()), _REFERENCE),
    pickle.BININT2[0]: (lambda m: m.stack.append(m.number(_SHORT)), _NUMBER),
    pickle.BINFLOAT[0]: (lambda m: m.stack.append(m.number(_FLOAT)), _NUMBER),
    pickle.LONG1[0]: (_Machine.long, _NUMBER),
    pickle.BINUNICODE[0]: (lambda m: m.text(m.number(_UINT)), _CONTAINER),
    pickle.SHORT_BINUNICODE[0]: (lambda m: m.text(m.byte()), _CONTAINER),
    pickle.BINBYTES[0]: (lambda m: m.stack.append(m.take(m.number(_UINT))), _CONTAINER),
    pickle.SHORT_BINBYTES[0]: (lambda m: m.stack.append(m.take(m.byte())), _CONTAINER),
    pickle.MARK[0]: (_Machine.mark, _CONTAINER),
    pickle.EMPTY_LIST[0]: (lambda m: m.stack.append([]), _CONTAINER),
    pickle.EMPTY_DICT[0]: (lambda m: m.stack.append({}), _CONTAINER),
    pickle.EMPTY_SET[0]: (lambda m: m.stack.append(set()), _SET),
    pickle.EMPTY_TUPLE[0]: (lambda m: m.stack.append(()), _REFERENCE),
    pickle.TUPLE1[0]: (lambda m: m.tuple(1), _CONTAINER),
    pickle.TUPLE2[0]: (lambda m: m.tuple(2), _CONTAINER),
    pickle.TUPLE3[0]: (lambda m: m.tuple(3), _CONTAINER),
    pickle.TUPLE[0]: (_Machine.tuple_from_mark, _CONTAINER),
    pickle.APPEND[0]: (lambda m: m.append([m.stack.pop()]), _REFERENCE),
    pickle.APPENDS[0]: (lambda m: m.append(m.pop_mark()), 0),
    pickle.SETITEM[0]: (lambda m: m.set_items(m.pop_pair()), 0),
    pickle.SETITEMS[0]: (lambda m: m.set_items(m.pop_mark()), 0),
    pickle.ADDITEMS[0]: (lambda m: m.add_items(m.pop_mark()), 0),
    pickle.MEMOIZE[0]: (_Machine.memoize, _REFERENCE),
    pickle.BINPUT[0]: (lambda m: m.put(m.byte()), _REFERENCE),
    pickle.LONG_BINPUT[0]: (lambda m: m.put(m.number(_UINT)), _REFERENCE),
    pickle.BINGET[0]: (lambda m: m.get(m.byte()), _REFERENCE),
    pickle.LONG_BINGET[0]: (lambda m: m.get(m.number(_UINT)), _REFERENCE),
    pickle.GLOBAL[0]: (_Machine.name, _REFERENCE),
    pickle.STACK_GLOBAL[0]: (_Machine.pushed_name, _REFERENCE),
    pickle.REDUCE[0]: (_Machine.call, _REFERENCE),
    pickle.NEWOBJ[0]: (_Machine.call, _REFERENCE),
    pickle.BUILD[0]: (_Machine.build, 0),
    pickle.BINPERSID[0]: (_Machine.persistent_id, _RECORD),
}
