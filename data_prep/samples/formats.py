"""Sample formats: how a change is written, with its filters, and read back for the replay check."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.changes.record import Change
from data_prep.io.registry import Registry
from data_prep.reconstruct.contents import Rejected
from data_prep.reconstruct.edits import CannotApply
from data_prep.reconstruct.reconstruct import Reconstruction, reconstruct
from data_prep.reconstruct.replay_check import ParsedSample, verify_replay
from data_prep.samples.anonymize import Anonymizer, holds_credential
from data_prep.samples.factorised_format import read_editing, render_editing, render_localization
from data_prep.samples.filters import reject_general, reject_python
from data_prep.samples.general_format import read_general, render_general
from data_prep.samples.python_format import read_python, render_python
from data_prep.samples.sample import Sample

Render = Callable[[Change, Reconstruction, Anonymizer], str]
Parse = Callable[[str], ParsedSample]


@dataclass(frozen=True)
class SampleFormat:
    """`parts` are the documents that one change becomes: name, how it is written, how it is read (None: not proven)."""

    reject: Callable[[Change], str | None]
    parts: tuple[tuple[str, Render, Parse | None], ...]
    name_opaque: bool = False


SAMPLE_FORMATS: Registry[SampleFormat] = Registry(
    "sample format",
    {
        "python": SampleFormat(reject_python, (("", render_python, read_python),)),
        "general": SampleFormat(reject_general, (("", render_general, read_general),), name_opaque=True),
        "factorised": SampleFormat(
            reject_python, (("localization", render_localization, None), ("editing", render_editing, read_editing))
        ),
    },
    instance_of="data_prep.samples.formats:SampleFormat",
)
"""Instances of `SampleFormat`; `davinci data build --format` takes your own as package.module:name too."""


def samples_of(change: Change, sample_format: SampleFormat, pseudonyms: bool = True) -> list[Sample]:
    """The documents of a change. Raises Rejected with the reason, also where one of them does not replay."""
    reason = sample_format.reject(change)
    if reason is not None:
        raise Rejected(reason)
    if any(blob is not None and holds_credential(blob.decode(errors="replace")) for blob in change.blobs.values()):
        raise Rejected("credential_in_file")
    reconstruction = reconstruct(change, sample_format.name_opaque)
    anonymizer = Anonymizer(change, pseudonyms)
    samples = []
    for name, render, read in sample_format.parts:
        text = render(change, reconstruction, anonymizer)
        if read is not None:
            _verify_replay(change, text, read, frozenset(reconstruction.opaque))
        samples.append(Sample(f"{change.id}/{name}" if name else change.id, text, _source(change), _meta(change)))
    return samples


def _verify_replay(change: Change, text: str, read: Parse, leave_out: frozenset[str]) -> None:
    try:
        parsed = read(text)
    except CannotApply:
        raise Rejected("does_not_replay") from None
    verify_replay(change, parsed, leave_out)


def _source(change: Change) -> str:
    origin = change.origin or ("git" if change.conversation is None else "github")
    return f"{origin}:{change.kind}"


def _meta(change: Change) -> dict[str, object]:
    facts = change.facts
    return {
        "repository": change.repository,
        "language": facts.language if facts else None,
        "kind": change.kind,
        "number": change.number,
        "base": change.base,
        "head": change.head,
        "licenses": _licenses(change),
        "written_at": max((commit.authored_at for commit in change.own_commits), default=""),
        "opened_at": change.conversation.created_at if change.conversation else None,
        "landed_at": (change.conversation and change.conversation.merged_at) or change.landed_at,
        "commits": len(change.own_commits),
        "files": sorted({file.path for commit in change.own_commits for file in commit.files}),
    }


def _licenses(change: Change) -> list[str]:
    """SPDX ids, as the host has it, or as the files at the top of the repository say."""
    if change.facts and change.facts.license:
        return [change.facts.license]
    return list(change.licenses)
