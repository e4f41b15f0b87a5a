"""Which repositories: what GitHub says of one, and the most starred ones."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from data_prep.changes.field_types import check_fields
from data_prep.changes.record import RepositoryFacts
from data_prep.sources.github.addresses import clone_address, repository_name
from data_prep.sources.github.client import GitHubClient, Unavailable
from data_prep.sources.repository_names import is_repository_name

_PER_PAGE = 100
_MOST_PER_SEARCH = 1000  # GitHub gives no more, whatever the search finds
_FIRST_YEAR = 2008  # of GitHub


@dataclass(frozen=True)
class Repository:
    """A repository: its name today, where the server has it cloned from (see `cloned_from`), and what is said of it."""

    name: str
    clone_url: Any
    facts: RepositoryFacts


def repository(client: GitHubClient, name: str) -> Repository:
    """A repository by the name it has, or had.

    Raises Unavailable where it is gone or blocked, RefusedAnswer where its name or address is not followed.
    """
    with client.refused_if_odd():
        return _repository(client, client.get(f"/repos/{name}"))


def _repository(client: GitHubClient, found: Any) -> Repository:
    source = found.get("source") or found.get("parent") or {}
    licence = (found.get("license") or {}).get("spdx_id")
    facts = RepositoryFacts(
        description=found.get("description") or "",
        language=found.get("language"),
        stars=found["stargazers_count"],
        archived=found["archived"],
        fork=found["fork"],
        topics=tuple(found.get("topics") or ()),
        source=source.get("full_name"),
        license=licence if licence != "NOASSERTION" else None,
    )
    check_fields(facts)
    return Repository(repository_name(found["full_name"], client.url), found["clone_url"], facts)


def cloned_from(client: GitHubClient, found: Repository) -> str:
    """Where to clone a repository. Raises RefusedAnswer where its address is not followed."""
    return clone_address(found.clone_url, client.url)


def most_starred(client: GitHubClient, count: int, language: str | None) -> list[str]:
    """Names of the `count` repositories with the most stars, in that order; forks are left out, as the search does."""
    chosen: dict[str, None] = {}
    for name in _by_stars(client, f" language:{language}" if language else ""):
        if len(chosen) == count:
            break
        if is_repository_name(name):
            chosen[name] = None
    return list(chosen)


def _by_stars(client: GitHubClient, rest: str) -> Iterator[str]:
    """One search gives its first thousand: the next one begins at the stars of the last that was found."""
    bound = ""
    while True:
        stars: list[int] = []
        for item in _search(client, f"stars:{bound or '>0'}{rest}"):
            stars.append(item["stargazers_count"])
            yield item["full_name"]
        if len(stars) < _MOST_PER_SEARCH:
            return
        least = stars[-1]
        if least == stars[0]:  # a thousand with the same stars: year by year
            for year in range(_FIRST_YEAR, datetime.now(UTC).year + 1):
                created = f"created:{year}-01-01..{year}-12-31"
                yield from (item["full_name"] for item in _search(client, f"stars:{least} {created}{rest}"))
            least -= 1
        bound = f"0..{least}"


def _search(client: GitHubClient, query: str) -> Iterator[dict[str, Any]]:
    for page in range(1, _MOST_PER_SEARCH // _PER_PAGE + 1):
        with client.refused_if_odd():
            try:
                found = client.get(
                    "/search/repositories", q=query, sort="stars", order="desc", per_page=_PER_PAGE, page=page
                )
            except Unavailable:  # beyond the last page
                return
            items = [{name: item[name] for name in ("stargazers_count", "full_name")} for item in found["items"]]
            if not all(type(item["stargazers_count"]) is int for item in items):
                raise TypeError("stargazers_count is no number")
        yield from items
        if len(items) < _PER_PAGE:
            return
