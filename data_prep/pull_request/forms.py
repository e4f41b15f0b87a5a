"""The forms a change can take, each with its filters and with the way back that the replay proof goes."""

from collections.abc import Callable
from dataclasses import dataclass

from data_prep.pull_request.contents import Rejected
from data_prep.pull_request.edits import CannotApply
from data_prep.pull_request.factorised import read_editing, render_editing, render_localization
from data_prep.pull_request.filters import reject_general, reject_python
from data_prep.pull_request.proof import ReadBack, prove
from data_prep.pull_request.reconstruct import Reconstruction, reconstruct
from data_prep.pull_request.record import Change
from data_prep.pull_request.render_general import read_general, render_general
from data_prep.pull_request.render_python import read_python, render_python
from data_prep.pull_request.speech import Speech, holds_credential
from data_prep.sample import Sample

Render = Callable[[Change, Reconstruction, Speech], str]
Read = Callable[[str], ReadBack]


@dataclass(frozen=True)
class Form:
    """`parts` are the documents that one change becomes: name, how it is written, how it is read (None: not proven)."""

    reject: Callable[[Change], str | None]
    parts: tuple[tuple[str, Render, Read | None], ...]
    name_opaque: bool = False


FORMS = {
    "python": Form(reject_python, (("", render_python, read_python),)),
    "general": Form(reject_general, (("", render_general, read_general),), name_opaque=True),
    "factorised": Form(
        reject_python, (("localization", render_localization, None), ("editing", render_editing, read_editing))
    ),
}


def samples_of(change: Change, form: Form, pseudonyms: bool = True) -> list[Sample]:
    """The documents of a change. Raises Rejected with the reason, also where one of them does not replay."""
    reason = form.reject(change)
    if reason is not None:
        raise Rejected(reason)
    if any(blob is not None and holds_credential(blob.decode(errors="replace")) for blob in change.blobs.values()):
        raise Rejected("credential_in_file")
    reconstruction = reconstruct(change, form.name_opaque)
    speech = Speech(change, pseudonyms)
    samples = []
    for name, render, read in form.parts:
        text = render(change, reconstruction, speech)
        if read is not None:
            _prove(change, text, read, frozenset(reconstruction.opaque))
        samples.append(Sample(f"{change.id}/{name}" if name else change.id, text, _source(change), _meta(change)))
    return samples


def _prove(change: Change, text: str, read: Read, leave_out: frozenset[str]) -> None:
    try:
        read_back = read(text)
    except CannotApply:
        raise Rejected("does_not_replay") from None
    prove(change, read_back, leave_out)


def _source(change: Change) -> str:
    return f"{'git' if change.conversation is None else 'github'}:{change.kind}"


def _meta(change: Change) -> dict[str, object]:
    facts = change.facts
    return {
        "repository": change.repository,
        "language": facts.language if facts else None,
        "kind": change.kind,
        "number": change.number,
        "base": change.base,
        "head": change.head,
        "commits": len(change.own_commits),
        "files": sorted({file.path for commit in change.own_commits for file in commit.files}),
    }
