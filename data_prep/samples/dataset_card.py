"""The dataset card of built samples: README.md as the Hugging Face hub reads it."""

from pathlib import Path
from typing import Any

from data_prep.io.markdown import cell

_HEAD = """\
---
configs:
- config_name: default
  data_files: samples/*.jsonl.zst
tags:
- code
- pull-requests
- mid-training
- megatron_davinci
---

# Samples of pull requests

Made by megatron_davinci (`davinci data build --format {format}`). Each line is a sample: `id`, `format`, `text`,
`tokens` and `meta`, which names the repository and its licences (SPDX ids). Every sample was replayed: its edits turn
the base into the head, byte for byte. In what people said, e-mail addresses and credentials are replaced; names
{names}.

| | |
|---|---|
"""
_TAIL = """
What was left out, with its reason, lies in `rejected/`. Respect the licences of the repositories before you publish.
"""


def write_dataset_card(folder: Path, summary: dict[str, Any], pseudonyms: bool) -> None:
    """Write README.md beside samples/ and rejected/; `summary` is that of the build."""
    rows = {name: summary[name] for name in ("records", "changes", "samples")}
    rows["tokens"] = summary["tokens"] if summary["tokens"] is not None else "not counted"
    for name in ("rejected", "languages"):
        rows[name] = ", ".join(f"{cell(key)} {count:,}" for key, count in summary[name].items()) or "none"
    lines = [
        f"| {name} | {value:,} |" if isinstance(value, int) else f"| {name} | {value} |" for name, value in rows.items()
    ]
    head = _HEAD.format(format=summary["format"], names="are, too" if pseudonyms else "are not")
    (folder / "README.md").write_text(head + "\n".join(lines) + "\n" + _TAIL)
