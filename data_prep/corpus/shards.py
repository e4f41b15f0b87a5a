"""Many input files as shards of one corpus: each task writes its own, once, however often it is started."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from data_prep.corpus.benchmarks import References
from data_prep.corpus.decontaminate import measure_leakage, summaries, write_without
from data_prep.corpus.indexed import Corpus, corpus_files
from data_prep.corpus.inputs import expand
from data_prep.corpus.merge import merge_corpora
from data_prep.corpus.tokenize import TokenizeJob, tokenize
from data_prep.errors import InputError, NoDocuments
from data_prep.files import read_json, write_json


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
    except NoDocuments:
        empty = {"documents": 0, "tokens": 0, "provenance": {"inputs": [path.name for path in inputs]}}
        write_json(note, empty)
        return empty


def keep_to_job(job: TokenizeJob, out: Path, tasks: int) -> None:
    """Tie a folder of shards to the job that makes them. Raises InputError when it holds those of another one."""
    entry = {**asdict(job), "tasks": tasks, "inputs": list(job.inputs)}
    described = orjson.loads(orjson.dumps(entry, default=str))
    note = out / "job.json"
    if note.exists() and read_json(note) != described:
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
        raise NoDocuments("the inputs hold no document with text: there is nothing to merge")
    return Corpus.open_all(filled)


def merge_shards(out: Path, tasks: int, prefix: Path) -> dict[str, Any]:
    """All shards as one corpus; nothing is done where it is there already. Returns its manifest."""
    files = corpus_files(prefix, masked=False)
    if files["idx"].exists():
        return read_json(files["manifest.json"])
    return merge_corpora(shards_of(out, tasks), prefix)


def decontaminate_shard(
    source: Path, target: Path, benchmarks: list[str], tokenizer: Path, n: int, tau: float
) -> dict[str, Any] | None:
    """Leakage into one shard (PREFIX `source`), and the shard without what leaks (`target`); None for an empty shard.

    What is there already is not made again. Raises InputError when the shard is not finished, or the report that
    is there was made with other parameters.
    """
    if _empty_note(source).exists():
        write_json(_empty_note(target), read_json(_empty_note(source)))
        return None
    if not corpus_files(source, masked=False)["idx"].exists():
        raise InputError(f"{source} is not finished: finish tokenizing first")
    corpora = [Corpus(source)]
    references = References.read(benchmarks, tokenizer)
    asked = {"n": n, "tau": tau, "benchmarks": [[str(b.path), list(b.fields)] for b in references.benchmarks]}
    report = target.with_name(f"{target.name}.leakage.json")
    if report.exists():
        known: dict[str, Any] = read_json(report)
        if known["asked"] != asked:
            raise InputError(f"{report} was made with other parameters: choose another folder")
        return known
    leakage = measure_leakage(corpora, references, n, tau, 1)
    if not corpus_files(target, masked=False)["idx"].exists():
        try:
            write_without(corpora, leakage.leaking, target)
        except NoDocuments:
            write_json(_empty_note(target), {"documents": 0, "tokens": 0, "provenance": {"from": [str(source)]}})
    found = {**leakage.report, "leaking_documents": len(leakage.leaking), "asked": asked}
    write_json(report, found)
    return found


def merge_reports(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Reports of shards, in order, as the report over all of them: the score of an instance is its highest."""
    columns = zip(*(report["instances"] for report in reports), strict=True)
    instances = [max(column, key=lambda entry: entry["score"]) for column in columns]  # the first among equals
    return {
        **{name: reports[0][name] for name in ("n", "tau", "tokenizer")},
        "corpora": [corpus for report in reports for corpus in report["corpora"]],
        "benchmarks": summaries(reports[0]["benchmarks"], instances),
        "instances": instances,
        "leaking_documents": sum(report["leaking_documents"] for report in reports),
    }
