"""Many input files as shards of one corpus: each task writes its own, once, however often it is started."""

from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.corpus.indexed import Corpus, corpus_files
from data_prep.corpus.merge import merge_corpora
from data_prep.io.errors import InputError, NoDocuments
from data_prep.io.files import read_json, write_json
from data_prep.tokenize.inputs import expand
from data_prep.tokenize.tokenize import TokenizeJob, tokenize


def shard_prefix(out: Path, rank: int, tasks: int) -> Path:
    """PREFIX of the shard of one task."""
    return out / f"{rank:05d}-of-{tasks:05d}"


def _empty_note(prefix: Path) -> Path:
    """What stands for a shard without documents."""
    return prefix.with_name(f"{prefix.name}.empty.json")


def tokenize_shard(job: TokenizeJob, out: Path, rank: int, tasks: int) -> dict[str, Any]:
    """Encode every `tasks`-th input from number `rank` on into the task's shard; returns its manifest.

    A task that was killed goes on where it was, one that had ended does nothing. Raises InputError when the shard
    that is there was made from other inputs.
    """
    [key] = job.outputs
    inputs = expand(list(job.inputs))[rank::tasks]
    prefix = shard_prefix(out, rank, tasks)
    note = _empty_note(prefix)
    finished = corpus_files(prefix, masked=False)
    if note.exists() or finished["idx"].exists():
        manifest = read_json(note if note.exists() else finished["manifest.json"])
        if manifest["provenance"]["inputs"] != [path.name for path in inputs]:
            raise InputError(f"{prefix} was made from other inputs: name another")
        return manifest
    try:
        return tokenize(replace(job, inputs=tuple(map(str, inputs)), outputs={key: prefix}))[key]
    except NoDocuments as nothing:
        provenance = {"inputs": [path.name for path in inputs], **nothing.notes}
        empty = {"documents": 0, "tokens": 0, "provenance": provenance}
        write_json(note, empty)
        return empty


def _defaults() -> dict[str, Any]:
    return {each.name: each.default for each in fields(TokenizeJob) if each.default is not MISSING}


def keep_to_job(job: TokenizeJob, out: Path, tasks: int) -> None:
    """Tie a folder of shards to the job that makes them. Raises InputError when it holds those of another one."""
    entry = {**asdict(job), "tasks": tasks, "inputs": list(job.inputs)}
    described = orjson.loads(orjson.dumps(entry, default=str))
    note = out / "job.json"
    # An earlier version knew fewer options: those that it lacks have their defaults.
    if note.exists() and {**_defaults(), **read_json(note)} != described:
        raise InputError(f"{out} holds the shards of another job: remove it, or name another")
    out.mkdir(parents=True, exist_ok=True)
    write_json(note, described)


def shards_of(out: Path, tasks: int) -> list[Corpus]:
    """The shards of all tasks that hold documents, in order. Raises InputError while one is not there."""
    prefixes = [shard_prefix(out, rank, tasks) for rank in range(tasks)]
    filled = [prefix for prefix in prefixes if not _empty_note(prefix).exists()]
    for prefix in filled:
        if not corpus_files(prefix, masked=False)["idx"].exists():
            raise InputError(f"{prefix} is not finished: start the same command again")
    if not filled:
        notes = [read_json(_empty_note(prefix))["provenance"].get("examples", {}) for prefix in prefixes]
        first = next((broken for note in notes for broken in note.get("broken", [])), None)
        why = f": {first}" if first else ": there is nothing to merge"
        raise NoDocuments(f"the inputs hold no document with text{why}")
    return Corpus.open_all(filled)


def merge_shards(out: Path, tasks: int, prefix: Path) -> dict[str, Any]:
    """All shards as one corpus; nothing is done where it is there already. Returns its manifest."""
    files = corpus_files(prefix, masked=False)
    if files["idx"].exists():
        return read_json(files["manifest.json"])
    shards = shards_of(out, tasks)
    empty = [_empty_note(shard_prefix(out, rank, tasks)) for rank in range(tasks)]
    return merge_corpora(shards, prefix, [read_json(note)["provenance"] for note in empty if note.exists()])
