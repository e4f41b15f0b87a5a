"""Properties of edits: their Markdown is read back as it was, and blocks turn the old text into the new one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.reconstruct.blocks import block_edits
from data_prep.reconstruct.edits import (
    CannotApply,
    Edit,
    TextFile,
    occurs_once,
    parse_edits,
    render_edits,
)

# Lines that tempt a parser: markers, fences, headings, blanks, carriage returns; few of them, so that texts repeat.
LINE = st.sampled_from(
    [
        "",
        "a",
        "b",
        "    return x",
        "=======",
        "<<<<<<< SEARCH",
        ">>>>>>> REPLACE",
        "```",
        "````",
        "### Edit `f`",
        "a\r",
        "\t",
    ]
)
TEXT = st.builds(lambda lines, end: "\n".join(lines) + end, st.lists(LINE, max_size=12), st.sampled_from(["\n", ""]))


@given(TEXT.filter(bool), TEXT)
def test_blocks_turn_the_old_text_into_the_new_one(before: str, after: str) -> None:
    tree = {"f": TextFile(before, "100644")}
    for edit in parse_edits(render_edits(block_edits("f", before, after))):
        assert occurs_once(tree["f"].text, edit.search)
        edit.apply(tree)
    assert tree["f"].text == after


@given(TEXT, TEXT)
def test_markdown_of_edits_is_read_back(one: str, other: str) -> None:
    edits = [
        Edit("create", "new.py", text=one, mode="100755"),
        Edit("rename", "old.py", target="dir/new name.py"),
        Edit("mode", "x", mode="100644"),
        Edit("edit", "x", search=other, text=one),
        Edit("delete", "x"),
    ]
    assert parse_edits(render_edits(edits)) == edits


def test_a_search_text_that_occurs_twice_is_refused() -> None:
    with pytest.raises(CannotApply, match="not unique"):
        Edit("edit", "f", search="aa", text="b").apply({"f": TextFile("aaa", "100644")})


def test_overlapping_occurrences_count() -> None:
    assert not occurs_once("aXaXa", "aXa")
    assert occurs_once("aXa", "aXa")
    assert not occurs_once("abc", "")
