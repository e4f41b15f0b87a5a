"""Requests to a server of models: connections, the key, limits of size and time, and what an answer's status means."""

import os
import re
import time
from collections import Counter
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

import httpx

from data_prep.io.errors import InputError, describe, printable

_CONNECT_SECONDS = 10.0
_MAX_BODY = 64 << 20
_TRIES = 4  # of one request that the server answers with what is no reply; a reply that takes too long counts twice
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_LEAST_SECRET = 16  # characters, from which a key is one: "EMPTY" and "test" are words that replies have
_BUSY = frozenset({408, 409, 425, 429, 502, 503, 504, 529})
_MISTAKES = frozenset({301, 302, 303, 307, 308, 401, 402, 404, 405})  # of address, key or account


Given = TypeVar("Given")


class TryAgain(Exception):
    """A request is worth another try. `kind` is counted; `seconds`: how long the server asks to wait. `weight`: 0 where
    the server is gone or busy, else how much of its tries the request has used."""

    def __init__(self, kind: str, reason: str, weight: int = 0, seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.weight, self.seconds = kind, reason, weight, seconds


class BadRequest(Exception):
    """The server does not take a request."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class ModelServer:
    """`address` ends in /v1; the key is OPENAI_API_KEY's, where none is given. `seconds`: most of a reply."""

    def __init__(self, address: str, seconds: float = 1800.0, api_key: str | None = None) -> None:
        self._address, self._seconds = address.rstrip("/"), seconds
        self._key = ((os.environ.get("OPENAI_API_KEY") or "") if api_key is None else api_key).strip()
        if self._key and not re.fullmatch(r"[\x21-\x7e]+", self._key):
            raise InputError("OPENAI_API_KEY holds a character that no key has: set it again")
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            here = (urlsplit(self._address).hostname or "") in ("127.0.0.1", "::1", "localhost")
            self._http = httpx.Client(
                headers=headers,
                timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None),
                trust_env=not here,
                follow_redirects=False,  # neither what is asked nor the key goes to another host
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:  # of the proxy's address too
            raise InputError(f"{self._address} cannot be asked: {self._masked(describe(error))}") from None

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def refusal(self, what: str) -> InputError:
        """The sentence with which a command ends."""
        return InputError(f"{self._address} {what}: mend that, and start the command again; it goes on where it was")

    def with_tries(self, ask: Callable[[], Given], patience: float, events: "Counter[str]") -> Given:
        """What `ask` gives, asked again while it raises what is worth another try; that is counted in `events`.

        `patience`: seconds to wait for a server that is gone, or busy. Raises TryAgain where it answers with nothing of
        use, InputError where it does not answer.
        """
        silent_since: float | None = None
        pause, answered = _FIRST_PAUSE, 0
        while True:
            try:
                return ask()
            except TryAgain as again:
                events[again.kind] += 1
                answered += again.weight
                if answered >= _TRIES:
                    raise
                wait = min(max(pause, again.seconds), max(_LONGEST_PAUSE, pause))
                if not again.weight:
                    silent_since = time.monotonic() if silent_since is None else silent_since
                    if time.monotonic() + wait - silent_since > patience:
                        raise self.refusal(f"does not answer ({again.reason})") from None
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def post(self, path: str, content: bytes) -> bytes:
        """The body of an answer. Raises TryAgain, BadRequest and InputError."""
        try:
            with self._http.stream("POST", f"{self._address}{path}", content=content) as response:
                body = self._read(response)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError) as error:
            said = self._masked(describe(error))
            raise InputError(f"--server is {self._address}, no address ({said}): give http://HOST/v1") from None
        except httpx.TimeoutException as error:
            slow = isinstance(error, httpx.ReadTimeout)
            raise TryAgain("timeout" if slow else "no_connection", describe(error), weight=2 * slow) from None
        except httpx.HTTPError as error:
            cut = isinstance(error, httpx.RemoteProtocolError | httpx.ReadError)
            raise TryAgain("cut_off" if cut else "no_connection", self._masked(describe(error))) from None
        if response.status_code != 200:
            self._refuse(response, body)
        # a server may send the key back
        return body.replace(self._key.encode(), b"***") if len(self._key) >= _LEAST_SECRET else body

    def _read(self, response: httpx.Response) -> bytes:
        """A body as it is: what is packed may be a bomb."""
        if response.headers.get("content-encoding", "identity") != "identity":
            raise TryAgain("not_a_reply", "its replies are compressed, though none may be", weight=1)
        found, deadline = bytearray(), time.monotonic() + self._seconds
        for block in response.iter_raw():
            found += block
            if len(found) > _MAX_BODY:
                raise TryAgain("too_long", f"a reply is longer than {_MAX_BODY >> 20} MiB", weight=1)
            if time.monotonic() > deadline:
                raise TryAgain("timeout", f"a reply takes longer than {self._seconds:g} seconds", weight=2)
        return bytes(found)

    def _refuse(self, response: httpx.Response, body: bytes) -> None:
        status = response.status_code
        said = f"status {status}, {printable(' '.join(self._masked(body.decode('utf-8', 'replace')).split()), 300)}"
        if status in _BUSY:
            raise TryAgain("busy", said, seconds=_retry_after(response))
        if status >= 500:
            raise TryAgain("server_error", said, weight=1)
        if status in _MISTAKES:
            raise self.refusal(f"refuses ({said})")
        raise BadRequest(status, said)

    def _masked(self, text: str) -> str:
        return text.replace(self._key, "***") if len(self._key) > 3 else text


def _retry_after(response: httpx.Response) -> float:
    """Seconds that a busy server asks to wait; 0 where it does not say."""
    said = response.headers.get("retry-after", "")
    return float(said) if re.fullmatch(r"\d{1,6}(\.\d+)?", said) else 0.0
