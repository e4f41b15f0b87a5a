"""A language model behind any server that speaks OpenAI's protocol.

Answers are kept by what was asked, so that a killed run asks nothing twice. OPENAI_API_KEY is the key of a server that
wants one.
"""

import asyncio
import os
from dataclasses import dataclass
from typing import Any

import openai

from data_prep.io.errors import InputError, printable
from data_prep.io.response_cache import ResponseCache

_CONTENT_CHARACTERS = 48_000  # about 12,000 tokens; halved while the server says that it is too much
_LEAST_CHARACTERS = 500
_MOST_TRIES = 4
_MOST_REFUSALS = 3  # of short requests in a row: it is not one record's fault
_CHARACTERS_PER_TOKEN = 32  # that no text has: a longer answer is none
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class ModelReply:
    """What a model says, None where it says nothing, and tokens as its server counts them."""

    text: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class LanguageModel:
    """A model behind a server. Use it as a context, in the loop that asks."""

    def __init__(self, server: str, name: str, answers: ResponseCache, concurrency: int) -> None:
        self.name = name
        self._server, self._answers, self._concurrency = server, answers, concurrency
        self.refused = self._refusals = 0  # the latter in a row

    async def __aenter__(self) -> "LanguageModel":
        self._running = asyncio.Semaphore(self._concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self._server,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            # a server may not send what it is asked, nor the key, to another host
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
            max_retries=0,  # tried again below, where it is known what is worth it
            timeout=_TIMEOUT_SECONDS,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def answer(self, instruction: str, asked: str, patch: str, max_tokens: int) -> str | None:
        """What the model says, None where it says nothing. Raises InputError where the server is none."""
        return (await self.reply(instruction, asked, patch, max_tokens)).text

    async def reply(self, instruction: str, asked: str, patch: str, max_tokens: int) -> ModelReply:
        """What the model says, with what it cost; of `asked` and `patch` the beginnings are sent that it can read.

        Raises InputError where the server is none.
        """
        request = {"model": self.name, "instruction": instruction, "asked": asked, "patch": patch, "tokens": max_tokens}
        known = self._answers.get(request)
        if known is None:
            async with self._running:
                found = await self._ask(instruction, asked, patch, max_tokens)
            known = {"said": found.text, "usage": [found.prompt_tokens, found.completion_tokens]}
            self._answers.put(request, known)
        return ModelReply(known["said"], *known.get("usage", (0, 0)))

    async def _ask(self, instruction: str, asked: str, patch: str, max_tokens: int) -> ModelReply:
        room = _CONTENT_CHARACTERS
        why = ""
        for attempt in range(_MOST_TRIES):
            while True:
                content = f"{asked[:room]}\n\n{patch[:room]}"
                try:
                    return await self._complete(instruction, content, max_tokens)
                except openai.BadRequestError as error:  # longer than the model reads, most of the time
                    if room < _LEAST_CHARACTERS:
                        self._count_refused(error)
                        return ModelReply(None)
                    room //= 2
                except openai.APIStatusError as error:
                    if error.status_code == 413 and room >= _LEAST_CHARACTERS:
                        room //= 2
                        continue
                    if error.status_code not in (408, 409, 429) and error.status_code < 500:
                        raise InputError(
                            f"{self._server} refuses: status {error.status_code}, {_said_by(error)}"
                        ) from None
                    why = f"status {error.status_code}"
                    break
                except openai.APIConnectionError as error:  # timeouts too
                    why = type(error.__cause__ or error).__name__
                    break
            await asyncio.sleep(0.5 * 2**attempt)
        raise InputError(f"{self._server} does not answer ({why}): start the command again, it goes on where it was")

    async def _complete(self, instruction: str, content: str, max_tokens: int) -> ModelReply:
        try:
            found = await self._client.chat.completions.create(
                model=self.name,
                messages=[{"role": "system", "content": instruction}, {"role": "user", "content": content}],
                max_tokens=max_tokens,
                temperature=0.0,
            )
        except (ValueError, RecursionError):  # a body that is no JSON
            found = None
        said = _content(found)
        if said is _OTHER_FORM:
            raise InputError(
                f"{self._server} answers, but not as OpenAI's protocol has it: give the address that ends in /v1"
            )
        self._refusals = 0
        if said is None or len(said) > _CHARACTERS_PER_TOKEN * max_tokens:
            said = ""
        return ModelReply(said.encode(errors="replace").decode().strip() or None, *_usage(found))

    def _count_refused(self, error: openai.APIStatusError) -> None:
        """A request that a server does not take (its content filter, say) gets no answer; several in a row end it."""
        self.refused += 1
        self._refusals += 1
        if self._refusals == _MOST_REFUSALS:
            raise InputError(f"{self._server} refuses a short request: {_said_by(error)}") from None


def _said_by(error: openai.APIStatusError) -> str:
    said = " ".join(str(error.message).split())
    key = os.environ.get("OPENAI_API_KEY")
    return printable(said.replace(key, "***") if key else said, 200)


def _usage(found: Any) -> tuple[int, int]:
    """Tokens of the prompt and of the answer, as the server counts them; 0 where it does not."""
    counts = (getattr(getattr(found, "usage", None), name, 0) for name in ("prompt_tokens", "completion_tokens"))
    first, second = (count if isinstance(count, int) else 0 for count in counts)
    return first, second


_OTHER_FORM: Any = object()


def _content(found: Any) -> Any:
    """The text of an answer, None where the model says nothing; `_OTHER_FORM` for what is no answer."""
    try:
        said = found.choices[0].message.content
    except (AttributeError, LookupError, TypeError):
        return _OTHER_FORM
    return said if isinstance(said, str | None) else _OTHER_FORM
