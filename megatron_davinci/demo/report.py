"""What comes out of the demo, for a person: a table, and a page of the runs and the corpus."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from megatron_davinci.report import blocks
from megatron_davinci.report.write import write_report


def write_results(out: Path, facts: dict[str, Any], console: Console) -> None:
    """Write OUT/index.html, and print the table."""
    rows = _rows(facts)
    places = [
        ("exported model", str(out / "hf")),
        ("tokens", str(out / "corpus")),
        ("texts", str(out / "samples")),
        ("page to look at", str(out / "index.html")),
    ]
    _write_page(out, rows)
    table = Table(title="davinci demo", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in [*rows, *places]:
        table.add_row(name, value)
    console.print(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    generated = f", {facts['generated']} of them from a generated history" if "generated" in facts else ""
    return [
        ("changes mined", f"{facts['changes']:,}"),
        ("samples", f"{facts['samples']:,}{generated}"),
        ("trained on", f"{facts['documents']:,} documents, {facts['tokens']:,} tokens"),
        ("packing efficiency", f"{facts['packing_efficiency']:.2%}"),
        (
            "loss",
            f"{facts['first_loss']:.3f} -> {facts['last_loss']:.3f} (mean of the last 10 of {facts['steps']} steps)",
        ),
        ("tokens/s, median", f"{facts['tokens_per_second']:,.0f}"),
        ("logits, transformers against Megatron", f"max difference {facts['logit_difference']:.1e}"),
        (
            "reinforcement mid-training",
            f"{facts['first_match']:.0%} -> {facts['last_match']:.0%} right in {facts['rmt_steps']} steps",
        ),
        (
            "responses cut off",
            f"{facts['first_truncated']:.0%} -> {facts['last_truncated']:.0%}",
        ),
    ]


def _write_page(out: Path, rows: list[tuple[str, str]]) -> None:
    samples = sorted(path for path in (out / "samples").iterdir() if path.is_dir())
    write_report(
        [out / "run", out / "toy_language" / "run", *samples, out / "corpus" / "demo"],
        out / "index.html",
        out / "model",
        "davinci demo",
        blocks.PageSection("The demo", [blocks.Table(["", ""], rows)]),
    )
