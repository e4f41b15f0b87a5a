"""What a server answers is hostile: it is never an option, a path, or another host.

git runs a command that `--upload-pack=` names, reads the disk at file:///, and asks any host that it is sent to.
"""

import re
from typing import Any

import httpx

from data_prep.sources.repository_names import is_repository_name

_OBJECT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PATH = re.compile(r"(/(?!\.\.?(/|$))[A-Za-z0-9_.-]+)+")
_PORTS = {"https": 443, "http": 80}
_MAX_NUMBER = 1 << 53


class RefusedAnswer(Exception):
    """An answer that is not followed; the message is a sentence."""


def repository_name(value: Any, api: str) -> str:
    """OWNER/NAME. Raises RefusedAnswer for anything else."""
    if not is_repository_name(value):
        raise RefusedAnswer(f"{api} calls a repository {_shown(value)}, which is no OWNER/NAME: it was refused")
    return str(value)


def object_id(value: Any, api: str) -> str:
    """The hash of a commit, a tree or a file. Raises RefusedAnswer for anything else."""
    if not isinstance(value, str) or not _OBJECT.fullmatch(value):
        raise RefusedAnswer(f"{api} answers {_shown(value)} for an object's hash: it was refused")
    return value


def pull_number(value: Any, api: str) -> int:
    """The number of a pull request. Raises RefusedAnswer for anything else."""
    if type(value) is not int or not 0 < value < _MAX_NUMBER:
        raise RefusedAnswer(f"{api} answers {_shown(value)} for a pull request's number: it was refused")
    return value


def clone_address(value: Any, api: str) -> str:
    """Where to clone a repository: by https from the API's own host, by http where the API itself is asked so.

    The host of https://api.github.com is github.com, as on GitHub Enterprise. Raises RefusedAnswer for anything else.
    """
    asked = _origin(api)
    assert asked is not None
    scheme, host, port = asked
    own = {(scheme, host, port), (scheme, host.removeprefix("api."), port)}
    given = _origin(value) if isinstance(value, str) and value.isascii() and " " not in value else None
    if given not in own or not _PATH.fullmatch(_path_of(value)):
        hosts = " or ".join(sorted(host for _, host, _ in own))
        raise RefusedAnswer(
            f"{api} has a repository cloned from {_shown(value)}, which is not {scheme} on {hosts}: it was refused"
        )
    return str(value)


def check_origin(address: Any, api: str) -> None:
    """Raise RefusedAnswer for a request that a redirect sends away from the API's scheme, host and port."""
    given = _origin(str(address))
    if given != _origin(api):
        shown = f"{given[0]}://{given[1]}:{given[2]}" if given else str(address)
        raise RefusedAnswer(f"{api} redirects to {_shown(shown)}: it was refused")


def _origin(address: str) -> tuple[str, str, int] | None:
    """Scheme, host and port, however they are spelled; None for what is no address, or says who asks."""
    try:
        url = httpx.URL(address)
    except (httpx.InvalidURL, ValueError):
        return None
    if url.userinfo or url.scheme not in _PORTS or not address.isprintable():
        return None
    return url.scheme, url.host, url.port or _PORTS[url.scheme]


def _path_of(address: str) -> str:
    """Everything behind host and port, with what follows a question mark."""
    _, slash, path = address.partition("://")[2].partition("/")
    return slash + path


def _shown(value: Any) -> str:
    return ascii(value)[:200]
