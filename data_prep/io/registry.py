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
    except ModuleNotFoundError as error:
        raise InputError(
            f"{path} cannot be imported ({error}): give package.module:name, of a package that is installed or on "
            "PYTHONPATH"
        ) from None
    except Exception as error:  # whatever somebody's code raises
        raise InputError(
            f"{path} cannot be imported: {module} fails with {type(error).__name__}: {error}; fix it"
        ) from error
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InputError(f"{path} cannot be imported: {module} has no {attribute}; give package.module:name")
        found = getattr(found, name)
    return found


class Registry(Generic[Member]):
    """Members of one kind, by name. `what` is the kind, for messages.

    `instance_of`, `subclass_of`: import path of the type that members are instances or subclasses of. Without either,
    a member is anything that can be called.

    A member is an object, or a string "package.module:attribute", which is imported when somebody asks for it. A name
    with a colon is such a path itself, so a recipe can name what was never registered.
    """

    def __init__(
        self,
        what: str,
        members: Mapping[str, Member | str] | None = None,
        *,
        instance_of: str | None = None,
        subclass_of: str | None = None,
    ) -> None:
        self._what, self._instance_of, self._subclass_of = what, instance_of, subclass_of
        self._members: dict[str, Member | str] = dict(members or {})

    def register(self, name: str, member: Member | str) -> None:
        """Add a member, or its import path. Raises InputError for a name that is taken, or that is a path."""
        if name in self._members or ":" in name:
            raise InputError(f"{name!r} cannot name a new {self._what}: it is taken, or has a colon; choose another")
        if not isinstance(member, str):
            self._check_kind(repr(name), member)
        self._members[name] = member

    def names(self) -> list[str]:
        """The names of all members, in the order in which they were registered."""
        return list(self._members)

    def check(self, name: str) -> None:
        """Raise InputError unless a member has this name, or it is an import path of what could be one."""
        if ":" in name:
            self._check_kind(name, import_path(name))
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
        if isinstance(member, str):
            member = cast(Member, import_path(member))
            self._check_kind(name, member)
        return member

    def _check_kind(self, name: str, member: Any) -> None:
        if self._instance_of is not None:
            fits, must = isinstance(member, import_path(self._instance_of)), f"an instance of {self._instance_of}"
        elif self._subclass_of is not None:
            base = import_path(self._subclass_of)
            fits, must = isinstance(member, type) and issubclass(member, base), f"a subclass of {self._subclass_of}"
        else:
            fits, must = callable(member), "a function or a class"
        if not fits:
            raise InputError(f"{name} is a {type(member).__name__}: a {self._what} must be {must}")


def nearest(name: str, known: Iterable[str], at_least: float = 0.6) -> str:
    """ "; did you mean X?", or nothing where no known name is as close as `at_least`, of 1."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=at_least)
    return f"; did you mean {close[0]}?" if close else ""
