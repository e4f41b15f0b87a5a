"""Requests to GitHub: one at a time per token, within its limits, each answer kept.

The limits are obeyed in the order that GitHub asks for: `retry-after`, else `x-ratelimit-reset` where nothing remains,
else a minute, twice as long each time. Tokens stand in memory only: no message, file or log of ours holds one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from githubkit import GitHub
from githubkit.exception import RequestError, RequestFailed

from data_prep.io.errors import DAMAGE, InputError, describe, printable
from data_prep.io.response_cache import ResponseCache
from data_prep.sources.github.addresses import RefusedAnswer, check_origin

DEFAULT_URL = "https://api.github.com"
_MOST_TRIES = 6  # of one request, beside waiting for a limit to pass
_MOST_LIMITS = 12  # in a row without one answer
_MOST_BYTES = 256 << 20  # of one answer
_MOST_TIMEOUTS = 10  # that one answer may take as a whole
_MOST_SECONDS = 6 * 3600  # GitHub's limits pass within an hour
_GONE = (404, 409, 410, 422, 451)  # a request that will not succeed: deleted, empty, moved beyond reach, blocked


class Unavailable(Exception):
    """GitHub has no answer to this request; the message is the status."""


class QueryTooLarge(Exception):
    """The query asks for more than GitHub computes in time: ask for less."""


@dataclass
class Reply:
    """What came back. Status 0: nothing did, and `body` says why."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Token:
    """A token's client and its state. `free_at` is when it may be used again; `limits` counts refusals in a row."""

    client: GitHub[Any] = field(repr=False)
    free_at: float = 0.0
    limits: int = 0
    remaining: int | None = None


class GitHubClient:
    """Give `tokens`, or an empty list for what anybody may ask. `pause` is the minute of the rule, in seconds;
    `timeout`, in seconds too, is longer than the ten after which GitHub gives up on a query.

    Use it as a context. `calls` counts requests answered from the server or the cache, `sent` those that went out.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        cache: ResponseCache,
        url: str = DEFAULT_URL,
        pause: float = 60.0,
        timeout: float = 30.0,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self.url = url.rstrip("/")
        self.calls = self.sent = 0
        self._cache, self._pause, self._timeout, self._on_state = cache, pause, timeout, on_state
        self._tokens = [Token(self._client(token)) for token in tokens] or [Token(self._client(None))]
        self._open = ExitStack()
        self._secrets = [token for token in tokens if token]
        self._recent: list[dict[str, Any]] | None = None  # requests of the block that is open

    def _client(self, token: str | None) -> GitHub[Any]:
        return GitHub(
            token,
            base_url=self.url,
            user_agent="megatron-davinci",
            auto_retry=False,  # it knows neither the waiting rule nor the other tokens
            http_cache=False,
            follow_redirects=True,
            event_hooks={
                "request": [lambda request: check_origin(request.url, self.url)],  # of each redirect too
                "response": [self._read_bounded],
            },
            timeout=httpx.Timeout(self._timeout),
        )

    def __enter__(self) -> Self:
        for token in self._tokens:
            self._open.enter_context(token.client)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def _read_bounded(self, response: httpx.Response) -> None:
        """Read the body here: it may be endless, or come a byte at a time."""
        pieces, held, deadline = list[bytes](), 0, time.monotonic() + _MOST_TIMEOUTS * self._timeout
        for piece in response.iter_bytes():
            pieces.append(piece)
            held += len(piece)
            if held > _MOST_BYTES:
                raise RefusedAnswer(f"{self.url} sends more than {_MOST_BYTES >> 20} MiB: it was refused")
            if time.monotonic() > deadline:
                raise httpx.ReadTimeout("the answer takes too long")
        response._content = b"".join(pieces)  # what httpx itself does where it reads

    @contextmanager
    def refused_if_odd(self) -> Iterator[None]:
        """Around what takes answers apart: those of another form than GitHub's are forgotten (they would be wrong for
        ever), and RefusedAnswer is raised.
        """
        outer, self._recent = self._recent, []
        try:
            yield
        except DAMAGE as error:
            for request in self._recent:
                self._cache.remove(request)
            raise RefusedAnswer(f"{self.url} answers in another form than GitHub ({describe(error)})") from None
        finally:
            if outer is not None:
                outer += self._recent
            self._recent = outer

    def masked(self, text: object) -> str:
        """What a server says, without the tokens that it was sent."""
        said = str(text)
        for secret in self._secrets:
            said = said.replace(secret, "***")
        return said

    def get(self, path: str, **params: str | int) -> Any:
        """The JSON behind a path of the REST API. Raises Unavailable where there is none, and RefusedAnswer."""
        request = {"server": self.url, "get": path, "params": params}
        return self._answer(request, lambda client: client.request("GET", path, params=params))

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """The data of a GraphQL query; parts that GitHub could not give are None in it.

        Raises Unavailable where there is none at all, TooMuch where the query is too large to be answered in time,
        RefusedAnswer where another host is to be asked.
        """
        request = {"server": self.url, "query": text, "variables": variables}
        body = {"query": text, "variables": variables}

        def send(client: GitHub[Any]) -> Any:
            return client.request("POST", _graphql(client), json=body)

        answer: dict[str, Any] = self._answer(request, send)
        return answer

    def _answer(self, request: dict[str, Any], send: Callable[[GitHub[Any]], Any]) -> Any:
        self.calls += 1
        if self._recent is not None:
            self._recent.append(request)
        known = self._cache.get(request)
        if known is None:
            try:
                known = self._ask(send, "query" in request)
            except (InputError, RefusedAnswer) as error:
                raise type(error)(self.masked(error)) from None
            with suppress(TypeError, ValueError):  # half a character, a number beyond 64 bits: refused where it is read
                self._cache.put(request, known)
        if "status" in known:
            raise Unavailable(str(known["status"]))
        return known["data"]

    def _ask(self, send: Callable[[GitHub[Any]], Any], is_query: bool) -> dict[str, Any]:
        """What to keep of the answer: {"data": ...}, or {"status": ...} where there will never be one."""
        failures: list[str] = []
        limits = 0
        while len(failures) < _MOST_TRIES:
            token = self._free_token()
            reply = self._send(token, send)
            token.remaining = _number(reply.headers.get("x-ratelimit-remaining"), token.remaining)
            wait = self._wait_for(reply, token)
            if wait is not None:
                limits += 1
                if limits > _MOST_LIMITS * len(self._tokens):
                    raise InputError(
                        f"{self.url} has refused {limits} requests in a row for its rate limits: "
                        "start the command again later, it goes on where it was"
                    )
                token.limits += 1
                token.free_at = time.time() + wait
                continue
            token.limits = limits = 0
            if reply.status == 401:
                raise InputError(f"{self.url} does not accept a token: it is wrong, or has expired; give another one")
            if is_query and reply.status in (502, 504) and failures:
                raise QueryTooLarge
            settled = _settle_query(reply) if is_query else _settle(reply)
            if settled is not None:
                return settled
            failures.append(f"status {reply.status}" if reply.status else str(reply.body))
            self._sleep(min(self._pause, 2 ** len(failures) * self._pause / 60))
        raise InputError(
            f"{self.url} does not answer ({failures[-1]}): start the command again later, it goes on where it was"
        )

    def _send(self, token: Token, send: Callable[[GitHub[Any]], Any]) -> Reply:
        self.sent += 1
        self._say(token, "asking")
        try:
            response = send(token.client)
        except RequestFailed as error:
            response = error.response
        except RequestError as error:  # timeouts too
            if isinstance(error.exc, RefusedAnswer):
                raise error.exc from None
            return Reply(0, {}, type(getattr(error, "exc", error)).__name__)
        except (ValueError, OverflowError):  # githubkit cannot read a `retry-after` that is a date, or of years
            return Reply(429, {}, None)
        try:
            body = response.json() if response.content else None
        except (ValueError, RecursionError):
            body = None
        return Reply(response.status_code, {key.lower(): value for key, value in response.headers.items()}, body)

    def _wait_for(self, reply: Reply, token: Token) -> float | None:
        """Seconds until a limit has passed, None where none was met."""
        if not _is_limited(reply):
            return None
        after = reply.headers.get("retry-after", "")
        if (seconds := _number(after, None)) is not None:
            return self._bearable(float(seconds))
        reset = _number(reply.headers.get("x-ratelimit-reset"), None)
        if reply.headers.get("x-ratelimit-remaining") == "0" and reset is not None:
            return self._bearable(max(0.0, float(reset) - time.time()) + 1)
        return self._pause * 2.0 ** min(token.limits, 6)

    def _bearable(self, wait: float) -> float:
        """Raises InputError for what nobody waits for."""
        if wait > _MOST_SECONDS:
            raise InputError(
                f"{self.url} asks to wait for {wait / 3600:,.0f} hours: start the command again later, it goes on "
                "where it was"
            )
        return wait

    def _free_token(self) -> Token:
        """The token that may be used first; waits until it may."""
        token = min(self._tokens, key=lambda token: (max(token.free_at, time.time()), -(token.remaining or 0)))
        wait = token.free_at - time.time()
        if wait > 0:
            self._say(token, f"every token waits; the first {wait:.0f} s")
            self._sleep(wait)
        return token

    def _sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def _say(self, token: Token, what: str) -> None:
        left = "?" if token.remaining is None else f"{token.remaining:,}"
        waiting = sum(token.free_at > time.time() for token in self._tokens)
        self._on_state(f"{self.calls:,} calls, {self.sent:,} sent; {left} remain; {waiting} tokens wait; {what}")


def _graphql(client: GitHub[Any]) -> str:
    return str(client.graphql._get_graphql_endpoint())  # the public call loses the headers with the rate limit


def _number(text: str | None, default: int | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 19 else default


def _is_limited(reply: Reply) -> bool:
    errors = _errors(reply)
    if reply.status == 429 or any(error.get("type") in ("RATE_LIMITED", "RATE_LIMIT") for error in errors):
        return True
    said = " ".join([_message(reply.body), *(str(error.get("message")) for error in errors)]).lower()
    if reply.status == 403:
        headers = reply.headers
        return "rate limit" in said or "retry-after" in headers or headers.get("x-ratelimit-remaining") == "0"
    return reply.status == 200 and bool(errors) and "rate limit" in said


def _message(body: Any) -> str:
    return str(body.get("message") or "") if isinstance(body, dict) else ""


def _errors(reply: Reply) -> list[dict[str, Any]]:
    errors = reply.body.get("errors") if isinstance(reply.body, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def _settle(reply: Reply) -> dict[str, Any] | None:
    """An answer worth keeping, None where it is worth asking again."""
    if reply.status == 200 and reply.body is not None:
        return {"data": reply.body}
    return {"status": reply.status} if reply.status in (403, *_GONE) else None


def _settle_query(reply: Reply) -> dict[str, Any] | None:
    data = reply.body.get("data") if isinstance(reply.body, dict) else None
    errors = _errors(reply)
    lost = [error for error in errors if error.get("type") not in ("NOT_FOUND", "FORBIDDEN")]
    if isinstance(data, dict) and not lost:  # what was deleted, or may not be seen, is null in the data
        return {"data": data}
    if reply.status == 200 and errors and not lost:
        return {"status": 404}
    if any("timedout" in str(error).lower() or "something went wrong" in str(error).lower() for error in lost):
        raise QueryTooLarge
    if reply.status == 200 and lost:
        raise RefusedAnswer(f"GitHub refuses a query: {printable(lost[0].get('message'), 300)}")
    return None
