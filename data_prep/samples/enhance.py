"""Reasoning between reading and editing, written by a language model: a summary of each change, fuller commit messages.

Any server that speaks OpenAI's protocol will do. Answers are kept by what was asked, so that a killed run asks nothing
twice; where a model has nothing to say, the change keeps what people wrote.
"""

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from data_prep.changes.record import Change, Commit, Enhancement
from data_prep.changes.shards import read_changes
from data_prep.io.errors import InputError
from data_prep.io.files import jsonl_writer, read_json
from data_prep.io.language_model import LanguageModel
from data_prep.io.response_cache import ResponseCache
from data_prep.io.shards import ShardedStep, ShardNote, ShardWork, shards_in
from data_prep.reconstruct.contents import Rejected, versions_of
from data_prep.reconstruct.patches import file_patch
from data_prep.samples.anonymize import TRAILER
from data_prep.samples.filters import reject_general

SUMMARY_TOKENS, MESSAGE_TOKENS = 512, 256  # daVinci-Dev, appendix B
_TERSE_WORDS = 6  # a message without a body and with fewer words says too little


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

    async def _enhance_shard(self, shard: Path, folder: Path, model: LanguageModel) -> ShardNote:
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


async def _in_order(changes: Iterator[Change], model: LanguageModel, ahead: int) -> AsyncIterator[Change]:
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


async def enhanced(change: Change, model: LanguageModel) -> Change:
    """A change with what the model has to say about it; of one that no corpus takes, nothing is asked."""
    if reject_general(change) is not None:
        return replace(change, enhancement=Enhancement(model.name, None))
    terse = [commit for commit in change.own_commits if is_terse(commit.message)]
    asked = _asked(change)
    patches = [patch_of(change, commit) for commit in change.own_commits]
    summary = model.answer(_instruction("summary"), asked, "\n".join(patches), SUMMARY_TOKENS)
    messages = (
        model.answer(_instruction("commit"), f"{asked}\n\nMessage: {c.message}", patch_of(change, c), MESSAGE_TOKENS)
        for c in terse
    )
    said, *fuller = await asyncio.gather(summary, *messages)
    refined = {commit.sha: text for commit, text in zip(terse, fuller, strict=True) if text}
    return replace(change, enhancement=Enhancement(model.name, said, refined))


def is_terse(message: str) -> bool:
    """Whether a commit message says too little to be reasoning."""
    return len(TRAILER.sub("", message).split()) < _TERSE_WORDS


def _instruction(prompt: str) -> str:
    return files("data_prep.samples").joinpath("prompts", f"{prompt}.md").read_text()


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
