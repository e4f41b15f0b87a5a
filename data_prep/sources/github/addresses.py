"""What a server answers is hostile: it is never an option, a path, or another host.

git runs a command that `--upload-pack=` names, reads the disk at file:///, and asks any host that it is sent to.
"""

import re
from typing import Any
from urllib.parse import SplitResult, urlsplit

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")
_OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATH = re.compile(r"(/[A-Za-z0-9_.-]+)+")


class RefusedAnswer(Exception):
    """An answer that is not followed; the message is a sentence."""


def repository_name(value: Any, api: str) -> str:
    """OWNER/NAME. Raises RefusedAnswer for anything else."""
    if not is_repository_name(value):
        raise RefusedAnswer(f"{api} calls a repository {_shown(value)}, which is no OWNER/NAME: it was refused")
    return str(value)


def is_repository_name(value: Any) -> bool:
    """Whether it is OWNER/NAME, as GitHub allows them."""
    return isinstance(value, str) and bool(_NAME.fullmatch(value)) and not {".", ".."} & set(value.split("/"))


def object_id(value: Any, api: str) -> str:
    """The hash of a commit, a tree or a file. Raises RefusedAnswer for anything else."""
    if not isinstance(value, str) or not _OBJECT.fullmatch(value):
        raise RefusedAnswer(f"{api} answers {_shown(value)} for an object's hash: it was refused")
    return value


def clone_address(value: Any, api: str) -> str:
    """Where to clone a repository: by https, from the API's own host or github.com; by http where the API is asked so.

    Raises RefusedAnswer for anything else.
    """
    asked = urlsplit(api)
    own = {asked.netloc, asked.netloc.removeprefix("api.")}  # api.github.com's repositories lie on github.com
    given = _split(value)
    by_https = given.scheme == "https" and given.netloc in {*own, "github.com"}
    by_http = given.scheme == asked.scheme == "http" and given.netloc == asked.netloc
    if not (by_https or by_http) or not _PATH.fullmatch(given.path) or given.query or given.fragment:
        hosts = " or ".join(sorted({*own, "github.com"}))
        raise RefusedAnswer(
            f"{api} has a repository cloned from {_shown(value)}, which is not https on {hosts}: it was refused"
        )
    return str(value)


def check_origin(address: Any, api: str) -> None:
    """Raise RefusedAnswer for a request that a redirect sends away from the API's scheme, host and port."""
    given, asked = urlsplit(str(address)), urlsplit(api)
    if (given.scheme, given.netloc) != (asked.scheme, asked.netloc):
        raise RefusedAnswer(f"{api} redirects to {_shown(f'{given.scheme}://{given.netloc}')}: it was refused")


def _split(value: Any) -> SplitResult:
    """The parts of an address, all empty for what is none: urlsplit itself drops line ends."""
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        return SplitResult("", "", "", "", "")
    try:
        return urlsplit(value)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _shown(value: Any) -> str:
    return ascii(value)[:200]
