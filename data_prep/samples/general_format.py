"""The general form: tags in the manner of The Stack v2, patches, and all that people said, in the order of time.

    <pr>Title: ...                        <pr_comment>username_1: ...        <pr_review>username_2: ...
    username_0: description               <pr_event_id>id                    <pr_event_id>id
    <pr_status>opened                                                        <pr_review_state>approved
    <repo_name>owner/name                 <pr_diff>username_0: message       <pr_review_comment>
    <pr_base>                             <pr_file>path                      <pr_in_reply_to_review_id>id
    <pr_file>path                         <pr_diff_hunk>                     <pr_in_reply_to_comment_id>id
    <pr_base_code>                        @@ -1,2 +1,2 @@                    <pr_file>path
    complete content                      ...                                <pr_diff_hunk_comment_line>line
                                                                             <pr_diff_hunk>
                                                                             ...
                                                                             <pr_comment>username_1: ...
                                                                             <pr_status>closed
                                                                             <pr_is_merged>True

Unlike The Stack v2 the files that the change touches are always there and complete, the comments of a review stand in
threads, and each commit has a patch of its own. A merge of the target branch opens `<pr_base>` anew: files as they then
are. A line of text or code that begins with one of the tags would be taken for structure: such a change is rejected.
"""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import accumulate

from data_prep.changes.record import Change, Event, FileChange
from data_prep.reconstruct.contents import Rejected, text_of, versions_of
from data_prep.reconstruct.edits import (
    CannotApply,
    FileTree,
    TextFile,
    split_lines,
    with_newline_marker,
    without_newline_marker,
)
from data_prep.reconstruct.patches import FilePatch, file_patch, read_patch_header
from data_prep.reconstruct.reconstruct import Reconstruction, Step
from data_prep.reconstruct.replay_check import ParsedSample
from data_prep.samples.anonymize import Anonymizer
from data_prep.samples.python_format import message_of, one_line
from data_prep.samples.told_once import body_of

_TAGS = (
    "pr", "pr_status", "repo_name", "pr_base", "pr_file", "pr_base_code", "pr_diff", "pr_diff_hunk", "pr_comment",
    "pr_event_id", "pr_review", "pr_review_state", "pr_review_comment", "pr_in_reply_to_review_id",
    "pr_in_reply_to_comment_id", "pr_diff_hunk_comment_line", "pr_is_merged",
)  # fmt: skip
_TAG_AT_LINE_START = re.compile(f"^<(?:{'|'.join(_TAGS)})>", re.MULTILINE)
_WHAT = {"A": "added", "M": "changed", "D": "deleted", "R": "renamed", "T": "changed"}
_HUNK_LINES_SHOWN = 4  # of the code that a review comment is about, its last ones: as the host shows it
_NOT_SHOWN, _GONE = "Not shown: ", "Not there any more.\n"


def render_general(change: Change, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    """One training document out of one change. Raises Rejected (tag_in_text) where a line could be taken for a tag."""
    events = [(at, _code_block(change, step, reconstruction, anonymizer)) for at, step in _dated(reconstruction.steps)]
    conversation = change.conversation
    for at, block in _said(conversation.events, anonymizer) if conversation else ():
        events.append((at, block))
    events.sort(key=lambda event: event[0])  # stable: commits keep their order
    return "".join([_opening(change, reconstruction, anonymizer), *(block for _, block in events), _closing(change)])


def _line(tag: str, text: str) -> str:
    return f"<{tag}>{text}\n"


def _block(tag: str, text: str) -> str:
    """A tag and what follows it, which may have many lines."""
    if _TAG_AT_LINE_START.search(text):
        raise Rejected("tag_in_text")
    return f"<{tag}>{text}" if text.endswith("\n") else f"<{tag}>{text}\n"


def _opening(change: Change, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    author = change.conversation.author if change.conversation else change.own_commits[0].author
    said = [f"Title: {one_line(anonymizer.scrub(change.title))}", anonymizer.attributed(author, body_of(change))]
    for issue in change.conversation.issues if change.conversation else ():
        where = "" if issue.repository in ("", change.repository) else issue.repository
        said.append(f"Closes issue {where}#{issue.number}: {one_line(anonymizer.scrub(issue.title))}")
        said.append(anonymizer.attributed(issue.author, issue.body))
    if change.enhancement and change.enhancement.summary:
        said.append(f"Summary: {anonymizer.scrub(change.enhancement.summary).strip()}")
    parts = [_block("pr", "\n".join(said)), _line("pr_status", "opened"), _line("repo_name", change.repository)]
    parts.append(_line("pr_base", ""))
    for path, text in sorted(reconstruction.relevant_files.items()):
        parts += [_line("pr_file", path), _base_code(text)]
    for path, why in sorted(reconstruction.opaque.items()):
        if path in reconstruction.paths_at_base:
            parts.append(_line("pr_file", path) + f"{_NOT_SHOWN}{why}\n")
    return "".join(parts)


def _base_code(text: str) -> str:
    return _block("pr_base_code", "\n" + with_newline_marker(text))


def _dated(steps: list[Step]) -> Iterator[tuple[str, Step]]:
    """Steps with their times, which never go back: a rebase leaves commits older than those they stand on."""
    return zip(accumulate((_utc(step.commit.authored_at) for step in steps), max), steps, strict=True)


def _utc(time: str) -> str:
    """A time that can be compared as text; nothing for what no clock shows."""
    try:
        return datetime.fromisoformat(time).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return ""


def _code_block(change: Change, step: Step, reconstruction: Reconstruction, anonymizer: Anonymizer) -> str:
    said = f"{anonymizer.name(step.commit.author)}: {message_of(change, step, anonymizer).strip()}".rstrip()
    files = [file for file in step.commit.files if file.path not in reconstruction.opaque]
    if step.commit.merge:
        return _block("pr_base", said) + "".join(_merged_file(change, file) for file in files)
    patches = "".join(_patch(patch) for file in files for patch in _patches_of(change, file))
    named = "".join(
        _line("pr_file", file.path) + f"{_NOT_SHOWN}{reconstruction.opaque[file.path]}, {_WHAT[file.status]}\n"
        for file in step.commit.files
        if file.path in reconstruction.opaque
    )
    return _block("pr_diff", said) + patches + named


def _merged_file(change: Change, file: FileChange) -> str:
    if file.status == "D":
        return _line("pr_file", file.path) + _GONE
    after = text_of(change, file.new_blob, file.new_mode)
    return _line("pr_file", file.path) + f"mode {after.mode}\n" + _base_code(after.text)


def _patches_of(change: Change, file: FileChange) -> list[FilePatch]:
    before, after = versions_of(change, file)
    if file.status == "T":  # a file where a link was: git takes the one away and makes the other
        return [file_patch(file.path, file.path, before, None), file_patch(file.path, file.path, None, after)]
    return [file_patch(file.path, file.old_path, before, after)]


def _patch(patch: FilePatch) -> str:
    hunks = "".join("<pr_diff_hunk>\n" + "".join(hunk) for hunk in patch.hunks)
    return _line("pr_file", patch.path) + patch.header() + hunks


def _said(events: tuple[Event, ...], anonymizer: Anonymizer) -> Iterator[tuple[str, str]]:
    """Comments, and reviews each with the threads that it opened, in which every answer stands below its question."""
    comments = {event.id: event for event in events if event.kind == "review_comment" and not event.bot}
    reviews = {event.id for event in events if event.kind == "review"}
    threads: dict[int, list[Event]] = {}
    for comment in comments.values():
        first, seen = comment, {comment.id}
        while first.reply_to in comments and first.reply_to not in seen:
            first = comments[first.reply_to]
            seen.add(first.id)
        threads.setdefault(first.id, []).append(comment)
    opened: dict[int | None, list[int]] = {}
    for first_id in threads:
        review = comments[first_id].review
        opened.setdefault(review if review in reviews else None, []).append(first_id)
    for event in (event for event in events if not event.bot):
        if event.kind == "comment" and event.text.strip():
            yield _utc(event.at), _speech("pr_comment", event, anonymizer)
        elif event.kind == "review" and (event.text.strip() or event.state != "COMMENTED" or event.id in opened):
            below = "".join(_thread(threads[first], anonymizer) for first in opened.get(event.id, ()))
            state = _line("pr_review_state", (event.state or "COMMENTED").lower())
            yield _utc(event.at), _speech("pr_review", event, anonymizer) + state + below
    for first_id in opened.get(None, ()):
        yield _utc(comments[first_id].at), _thread(threads[first_id], anonymizer)


def _speech(tag: str, event: Event, anonymizer: Anonymizer) -> str:
    return _block(tag, anonymizer.attributed(event.author, event.text)) + _line("pr_event_id", str(event.id))


def _thread(comments: list[Event], anonymizer: Anonymizer) -> str:
    """The comments of a thread; the first one shows the place in the code."""
    parts = []
    for number, comment in enumerate(sorted(comments, key=lambda comment: (_utc(comment.at), comment.id))):
        parts += [_line("pr_review_comment", ""), _line("pr_event_id", str(comment.id))]
        if comment.review is not None:
            parts.append(_line("pr_in_reply_to_review_id", str(comment.review)))
        if comment.reply_to is not None:
            parts.append(_line("pr_in_reply_to_comment_id", str(comment.reply_to)))
        parts.append("" if number else _where(comment))
        parts.append(_block("pr_comment", anonymizer.attributed(comment.author, comment.text)))
    return "".join(parts)


def _where(comment: Event) -> str:
    """The place that a thread is about, and the code there."""
    if comment.path is None or "\ufffd" in comment.path or not comment.path.isprintable():
        return ""
    line = _line("pr_diff_hunk_comment_line", str(comment.line)) if comment.line else ""
    lines = (comment.diff_hunk or "").split("\n")
    code = "".join(f"{line}\n" for line in lines[-_HUNK_LINES_SHOWN:] if line and not line.startswith("@@"))
    return _line("pr_file", comment.path) + line + (_block("pr_diff_hunk", f"\n{code}") if code else "")


def _closing(change: Change) -> str:
    merged = change.conversation.merged if change.conversation else True
    return _line("pr_status", "closed") + _line("pr_is_merged", str(merged))


class _Shown:
    """A file as a merge of the target branch left it; None where it took it away."""

    def __init__(self, path: str, file: TextFile | None) -> None:
        self.path, self.file = path, file

    def apply(self, tree: FileTree) -> None:
        if self.file is not None:
            tree[self.path] = self.file
        elif tree.pop(self.path, None) is None:
            raise CannotApply(f"{self.path} is not there")


def read_general(text: str) -> ParsedSample:
    """Base files, files shown after merges, and patches of a finished sample. Raises CannotApply where it is none."""
    files: dict[str, str] = {}
    steps: list[FilePatch | _Shown] = []
    section, num_bases, path, rest = "", 0, "", ""
    for tag, body in _tagged(text):
        if tag in ("pr_base", "pr_diff", "pr_review_comment"):
            section, num_bases = tag, num_bases + (tag == "pr_base")
        elif section == "pr_review_comment":
            continue  # the place that people speak of
        elif tag == "pr_file":
            path, _, rest = body.partition("\n")
            if rest == _GONE:
                steps.append(_Shown(path, None))
            elif section == "pr_diff" and not rest.startswith(_NOT_SHOWN):
                steps.append(read_patch_header(path, split_lines(rest)))
        elif tag == "pr_diff_hunk":
            patch = steps[-1] if steps else None
            if not isinstance(patch, FilePatch):
                raise CannotApply("a hunk belongs to no file")
            patch.hunks.append(split_lines(body)[1:])
        elif tag == "pr_base_code":
            content = without_newline_marker(body.removeprefix("\n"))
            if num_bases > 1:
                steps.append(_Shown(path, TextFile(content, rest.removeprefix("mode ").rstrip("\n"))))
            else:
                files[path] = content
    return ParsedSample(files, [(step.path, step.file) for step in steps if isinstance(step, _Shown)], steps)


def _tagged(text: str) -> Iterator[tuple[str, str]]:
    """Each tag with what follows it."""
    matches = list(_TAG_AT_LINE_START.finditer(text))
    for match, after in zip(matches, [*(m.start() for m in matches[1:]), len(text)], strict=True):
        yield match[0][1:-1], text[match.end() : after]
