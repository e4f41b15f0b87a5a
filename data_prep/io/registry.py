"""Extension points: members of one kind by name, to which a user adds by `register`, or names one by import path."""

import difflib
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, Generic, TypeVar, cast

from data_prep.io.errors import InputError

Member = TypeVar("Member")


def import_path(path: str) -> Any:
    """What "package.module:attribute" names. Raises InputError where it cannot be imported."""
    module, _, attribute = path.partition(":")
    try:
        found: Any = import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be imported ({error}): give package.module:name, of a package that is installed or on "
            "PYTHONPATH"
        ) from None
    return found


class Registry(Generic[Member]):
    """Members of one kind, by name. `what` is the kind, for messages.

    A member is an object, or a string "package.module:attribute", which is imported when somebody asks for it. A name
    with a colon is such a path itself, so a recipe can name what was never registered.
    """

    def __init__(self, what: str, members: Mapping[str, Member | str] | None = None) -> None:
        self._what = what
        self._members: dict[str, Member | str] = dict(members or {})

    def register(self, name: str, member: Member | str) -> None:
        """Add a member, or its import path. Raises InputError for a name that is taken, or that is a path."""
        if name in self._members or ":" in name:
            raise InputError(f"{name!r} cannot name a new {self._what}: it is taken, or has a colon; choose another")
        self._members[name] = member

    def names(self) -> list[str]:
        """The names of all members, in the order in which they were registered."""
        return list(self._members)

    def check(self, name: str) -> None:
        """Raise InputError unless a member has this name, or it is an import path that works."""
        if ":" in name:
            import_path(name)
        elif name not in self._members:
            known = ", ".join(self._members)
            raise InputError(
                f"{self._what} {name!r} is unknown{nearest(name, self._members)}: give one of {known}, or your own as "
                "package.module:name"
            )

    def get(self, name: str) -> Member:
        """The member of this name, or the object at an import path. Raises InputError."""
        self.check(name)
        member = self._members.get(name, name)
        return cast(Member, import_path(member) if isinstance(member, str) else member)


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean X?", or nothing where no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""
