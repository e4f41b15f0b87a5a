"""Pull requests of a repository, page by page, with all that was said about them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.changes.bots import is_bot
from data_prep.changes.field_types import check_fields
from data_prep.changes.record import GHOST, Conversation, Event, Issue
from data_prep.io.errors import printable
from data_prep.sources.github.addresses import RefusedAnswer, object_id, pull_number
from data_prep.sources.github.client import GitHubClient, QueryTooLarge, Unavailable
from data_prep.sources.github.queries import (
    MERGED_PULL_REQUESTS,
    PULL_REQUESTS_PER_QUERY,
    REST_OF,
    REST_OF_THREAD,
    REST_PER_QUERY,
)

Node = dict[str, Any]
_MOST_PAGES = 10_000  # of one list


@dataclass(frozen=True)
class PullRequestInfo:
    """A pull request as the host tells it, without its code. `landed` and `head` are commits, None where unknown."""

    number: int
    title: str
    body: str
    head: str | None
    landed: str | None
    conversation: Conversation


def merged_pull_requests(
    client: GitHubClient, owner: str, name: str, on_refused: Callable[[str, str], None]
) -> Iterator[list[PullRequestInfo]]:
    """Merged pull requests, oldest first, in pages. Raises Unavailable where the repository is not there (any more).

    `on_refused` hears of the number, as the server has it, of each that is told in another form than GitHub's, and why.
    """
    after: str | None = None
    seen: set[str] = set()
    while True:
        with client.refused_if_odd():
            data = _less_and_less(
                client, MERGED_PULL_REQUESTS, PULL_REQUESTS_PER_QUERY, owner=owner, name=name, after=after
            )
            if data.get("repository") is None:
                raise Unavailable("404")
            page = data["repository"]["pullRequests"]
            nodes, after = [node for node in page["nodes"] if node], _next_page(page, seen)
        infos = []
        for node in nodes:
            try:
                with client.refused_if_odd():
                    infos.append(_info(client, owner, name, node))
            except RefusedAnswer as error:
                number = node.get("number") if isinstance(node, dict) else None
                on_refused(printable(number, 20), str(error))
        yield infos
        if after is None:
            return


def _next_page(page: Node, seen: set[str]) -> str | None:
    """The cursor of the next page; None behind the last. Raises ValueError for one that was there before."""
    if not page["pageInfo"]["hasNextPage"]:
        return None
    after = page["pageInfo"]["endCursor"]
    if not isinstance(after, str) or after in seen or len(seen) > _MOST_PAGES:
        raise ValueError("the pages do not end")
    seen.add(after)
    return after


def _less_and_less(client: GitHubClient, query: str, first: int, **which: Any) -> Node:
    """The answer to a query for the `first` of a list, or for fewer where that is too much. Raises Unavailable."""
    while True:
        try:
            return client.query(query, first=first, **which)
        except QueryTooLarge:
            if first == 1:
                raise Unavailable("504") from None
            first = max(1, first // 4)


def _info(client: GitHubClient, owner: str, name: str, node: Node) -> PullRequestInfo:
    number = pull_number(node["number"], client.url)

    def whole(connection: str) -> Iterator[Node]:
        return _whole(client, owner, name, node, connection)

    author, bot = _actor(node)
    comments = [_comment(entry) for entry in whole("comments")]
    reviews = [_review(entry) for entry in whole("reviews") if entry["state"] != "PENDING"]
    threads = [_review_comment(entry) for thread in whole("reviewThreads") for entry in _thread(client, thread)]
    conversation = Conversation(
        author=author,
        bot=bot,
        merged=bool(node["merged"]),
        created_at=node["createdAt"],
        merged_at=node["mergedAt"],
        recorded_base=node["baseRefOid"],
        labels=tuple(label["name"] for label in whole("labels")),
        issues=tuple(_issue(entry) for entry in whole("closingIssuesReferences")),
        events=tuple(sorted([*comments, *reviews, *threads], key=lambda event: (event.at, event.id))),
    )
    check_fields(conversation)
    if not isinstance(node["title"], str) or not isinstance(node["body"], str | None):
        raise TypeError("a title or a body that is no text")
    landed = (node["mergeCommit"] or {}).get("oid")
    if landed is not None:
        landed = object_id(landed, client.url)
    head = object_id(node["headRefOid"], client.url)
    return PullRequestInfo(number, node["title"], node["body"] or "", head, landed, conversation)


def _whole(client: GitHubClient, owner: str, name: str, node: Node, connection: str) -> Iterator[Node]:
    """All nodes of a list of a pull request, the rest of it asked for where it goes on."""
    page, seen = node[connection], set[str]()
    while page is not None:
        yield from (entry for entry in page["nodes"] if entry)
        after = _next_page(page, seen)
        if after is None:
            return
        which = {"owner": owner, "name": name, "number": node["number"], "after": after}
        data = _less_and_less(client, REST_OF[connection], REST_PER_QUERY, **which)
        pull_request = (data.get("repository") or {}).get("pullRequest") or {}
        page = pull_request.get(connection)


def _thread(client: GitHubClient, thread: Node) -> Iterator[Node]:
    page, seen = thread["comments"], set[str]()
    while page is not None:
        yield from (entry for entry in page["nodes"] if entry)
        after = _next_page(page, seen)
        if after is None:
            return
        data = _less_and_less(client, REST_OF_THREAD, REST_PER_QUERY, id=thread["id"], after=after)
        page = (data.get("node") or {}).get("comments")


def _actor(node: Node) -> tuple[str, bool]:
    """Login and whether it is an automaton's; who has left GitHub is its ghost."""
    actor = node["author"]
    if actor is None:
        return GHOST, False
    return actor["login"], actor["__typename"] == "Bot" or is_bot(actor["login"])


def _id(node: Node | None) -> int | None:
    return int(node["fullDatabaseId"]) if node and node["fullDatabaseId"] is not None else None


def _issue(node: Node) -> Issue:
    return Issue(
        node["number"], node["title"], node["body"] or "", _actor(node)[0], node["repository"]["nameWithOwner"]
    )


def _comment(node: Node) -> Event:
    author, bot = _actor(node)
    return Event("comment", _id(node) or 0, node["createdAt"], author, node["body"] or "", bot)


def _review(node: Node) -> Event:
    author, bot = _actor(node)
    at = node["submittedAt"] or node["createdAt"]
    return Event("review", _id(node) or 0, at, author, node["body"] or "", bot, state=node["state"])


def _review_comment(node: Node) -> Event:
    author, bot = _actor(node)
    return Event(
        "review_comment",
        _id(node) or 0,
        node["createdAt"],
        author,
        node["body"] or "",
        bot,
        review=_id(node["pullRequestReview"]),
        reply_to=_id(node["replyTo"]),
        path=node["path"],
        line=node["line"] or node["originalLine"],
        diff_hunk=node["diffHunk"],
    )
