"""Reasoning between reading and editing, written by a language model: a summary of each change, fuller commit messages.

Any server that speaks OpenAI's protocol will do. Answers are kept by what was asked, so that a killed run asks nothing
twice; where a model has nothing to say, the change keeps what people wrote.
"""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import openai

from data_prep.changes.record import Change, Commit, Enhancement
from data_prep.changes.shards import read_changes
from data_prep.io.errors import InputError, printable
from data_prep.io.files import jsonl_writer, read_json
from data_prep.io.response_cache import ResponseCache
from data_prep.io.shards import ShardedStep, ShardNote, ShardWork, shards_in
from data_prep.reconstruct.contents import Rejected, versions_of
from data_prep.reconstruct.patches import file_patch
from data_prep.samples.anonymize import TRAILER
from data_prep.samples.filters import reject_general

SUMMARY_TOKENS, MESSAGE_TOKENS = 512, 256  # daVinci-Dev, appendix B
_TERSE_WORDS = 6  # a message without a body and with fewer words says too little
_PATCH_CHARACTERS = 48_000  # about 12,000 tokens; halved while the server says that it is too much
_LEAST_PATCH_CHARACTERS = 500
_MOST_TRIES = 4
_MOST_REFUSALS = 3  # of short requests in a row: it is not one record's fault
_CHARACTERS_PER_TOKEN = 32  # that no text has: a longer answer is none
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class EnhanceJob:
    """Records to records with a summary and fuller messages. OPENAI_API_KEY is the key of a server that wants one."""

    records: Path
    server: str
    model: str
    concurrency: int = 8

    def step(self, out: Path) -> ShardedStep:
        """The work, shard by shard. Raises InputError on bad input."""
        if self.concurrency < 1:
            raise InputError(f"--concurrency is {self.concurrency}; it must be at least 1")
        if not self.server.startswith(("http://", "https://")):
            raise InputError(f"--server is {self.server}; give an address such as http://127.0.0.1:8000/v1")
        shards = shards_in(self.records, "records", "davinci data collect")
        sizes = [shard.stat().st_size for shard in shards]
        described = {"records": str(self.records.absolute()), "sizes": sizes, "model": self.model}
        return ShardedStep(out, described, shards, lambda rank, tasks: self._open(out))

    @contextmanager
    def _open(self, out: Path) -> Iterator[ShardWork]:
        model = LanguageModel(self.server, self.model, ResponseCache(_answers(out)), self.concurrency)
        yield lambda shard, folder: asyncio.run(self._enhance_shard(shard, folder, model))

    async def _enhance_shard(self, shard: Path, folder: Path, model: "LanguageModel") -> ShardNote:
        counts: Counter[str] = Counter()
        async with model:
            with jsonl_writer(folder / "records" / shard.name) as writer:
                async for change in _in_order(read_changes(shard), model, self.concurrency):
                    writer.write(change.to_json())
                    counts["records"] += 1
                    assert change.enhancement is not None
                    counts["summaries"] += change.enhancement.summary is not None
                    counts["messages"] += len(change.enhancement.messages)
        return {**counts, **({"refused": model.refused} if model.refused else {})}

    def summarize(self, notes: list[ShardNote]) -> ShardNote:
        """Counts over all shards."""
        counts: Counter[str] = sum((Counter(note) for note in notes), Counter())
        collected = read_json(self.records / "summary.json")
        enhanced = {name: counts[name] for name in ("records", "summaries", "messages")}
        enhanced |= {"refused": counts["refused"]} if counts["refused"] else {}
        return {**collected, "enhanced": {"model": self.model, **enhanced}}


def remove_answers(out: Path) -> None:
    """What was kept for another start is not needed once all is done."""
    shutil.rmtree(_answers(out), ignore_errors=True)


def _answers(out: Path) -> Path:
    return out.absolute().with_name(f"{out.name}.answers")


async def _in_order(changes: Iterator[Change], model: "LanguageModel", ahead: int) -> AsyncIterator[Change]:
    """Enhanced changes in their order, some of them under way at the same time."""
    pending: list[asyncio.Task[Change]] = []
    try:
        for change in changes:
            pending.append(asyncio.create_task(enhanced(change, model)))
            if len(pending) > ahead:
                yield await pending.pop(0)
        while pending:
            yield await pending.pop(0)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def enhanced(change: Change, model: "LanguageModel") -> Change:
    """A change with what the model has to say about it; of one that no corpus takes, nothing is asked."""
    if reject_general(change) is not None:
        return replace(change, enhancement=Enhancement(model.name, None))
    terse = [commit for commit in change.own_commits if is_terse(commit.message)]
    asked = _asked(change)
    patches = [patch_of(change, commit) for commit in change.own_commits]
    summary = model.answer("summary", asked, "\n".join(patches), SUMMARY_TOKENS)
    messages = (
        model.answer("commit", f"{asked}\n\nMessage: {c.message}", patch_of(change, c), MESSAGE_TOKENS) for c in terse
    )
    said, *fuller = await asyncio.gather(summary, *messages)
    refined = {commit.sha: text for commit, text in zip(terse, fuller, strict=True) if text}
    return replace(change, enhancement=Enhancement(model.name, said, refined))


def is_terse(message: str) -> bool:
    """Whether a commit message says too little to be reasoning."""
    return len(TRAILER.sub("", message).split()) < _TERSE_WORDS


def _asked(change: Change) -> str:
    parts = [f"Repository: {change.repository}", f"Pull request: {change.title}", change.body]
    for issue in change.conversation.issues if change.conversation else ():
        parts.append(f"Issue: {issue.title}\n{issue.body}")
    return "\n\n".join(part for part in parts if part.strip())


def patch_of(change: Change, commit: Commit) -> str:
    """The patch of one commit; files that hold no text are only named."""
    parts = []
    for file in commit.files:
        try:
            before, after = versions_of(change, file)
        except Rejected as reason:
            parts.append(f"File: {file.path} ({reason})\n")
            continue
        patch = file_patch(file.path, file.old_path, before, after)
        parts.append(f"File: {file.path}\n{patch.header()}" + "".join(line for hunk in patch.hunks for line in hunk))
    return "".join(parts)


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

    async def answer(self, prompt: str, asked: str, patch: str, max_tokens: int) -> str | None:
        """What the model says, None where it says nothing. Raises InputError where the server is none."""
        instruction = files("data_prep.samples").joinpath("prompts", f"{prompt}.md").read_text()
        request = {"model": self.name, "instruction": instruction, "asked": asked, "patch": patch, "tokens": max_tokens}
        known = self._answers.get(request)
        if known is None:
            async with self._running:
                known = {"said": await self._ask(instruction, asked, patch, max_tokens)}
            self._answers.put(request, known)
        said: str | None = known["said"]
        return said

    async def _ask(self, instruction: str, asked: str, patch: str, max_tokens: int) -> str | None:
        room = _PATCH_CHARACTERS
        why = ""
        for attempt in range(_MOST_TRIES):
            while True:
                content = f"{asked[:room]}\n\n{patch[:room]}"
                try:
                    return await self._complete(instruction, content, max_tokens)
                except openai.BadRequestError as error:  # longer than the model reads, most of the time
                    if room < _LEAST_PATCH_CHARACTERS:
                        self._count_refused(error)
                        return None
                    room //= 2
                except openai.APIStatusError as error:
                    if error.status_code == 413 and room >= _LEAST_PATCH_CHARACTERS:
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

    async def _complete(self, instruction: str, content: str, max_tokens: int) -> str | None:
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
            return None
        return said.encode(errors="replace").decode().strip() or None

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


_OTHER_FORM: Any = object()


def _content(found: Any) -> Any:
    """The text of an answer, None where the model says nothing; `_OTHER_FORM` for what is no answer."""
    try:
        said = found.choices[0].message.content
    except (AttributeError, LookupError, TypeError):
        return _OTHER_FORM
    return said if isinstance(said, str | None) else _OTHER_FORM
