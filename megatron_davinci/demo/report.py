"""What comes out of the demo, for a person: a table, the loss curve, a page."""

from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen
from rich.console import Console
from rich.table import Table

from data_prep.io.files import PART, read_jsonl
from megatron_davinci.train.metrics_file import read_metrics

_STYLE = "body{font:16px/1.5 system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1.5rem .1rem 0}"
_STYLE += "pre{background:#f4f4f4;padding:1rem;overflow:auto;max-height:30rem}img{max-width:100%}"


def write_report(out: Path, facts: dict[str, Any], console: Console) -> None:
    """Write OUT/loss.png and OUT/index.html, and print the table."""
    rows = _rows(out, facts)
    table = Table(title="davinci demo", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    _plot_loss(out)
    _write_page(out, rows)
    console.print(table)


def _rows(out: Path, facts: dict[str, Any]) -> list[tuple[str, str]]:
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
        ("exported model", str(out / "hf")),
        ("loss curve", str(out / "loss.png")),
        ("tokens", str(out / "corpus")),
        ("texts", str(out / "samples")),
        ("page to look at", str(out / "index.html")),
    ]


def _plot_loss(out: Path) -> None:
    steps = read_metrics(out / "run" / "metrics.jsonl")
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot([step["step"] for step in steps], [step["loss"] for step in steps])
    axes.set(xlabel="optimizer step", ylabel="next-token loss (nats)", title="Mid-training on 2 ranks (TP 2, SP)")
    axes.grid(alpha=0.3)
    part = out / f"loss{PART}.png"
    figure.savefig(part, dpi=120)
    plt.close(figure)
    part.replace(out / "loss.png")


def _write_page(out: Path, rows: list[tuple[str, str]]) -> None:
    first = next((record for shard in sorted(out.glob("samples/*/samples/*")) for record in read_jsonl(shard)), None)
    sample = f"<h2>A sample: {escape(first['id'])}</h2><pre>{escape(first['text'])}</pre>" if first else ""
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in rows)
    page = (
        f'<!doctype html><meta charset="utf-8"><title>davinci demo</title><style>{_STYLE}</style>'
        f'<h1>davinci demo</h1><table>{cells}</table><img src="loss.png" alt="loss curve">'
        '<h2>Reinforcement mid-training on the language of doors</h2><img src="toy_language/run.png" alt="its metrics">'
        f"{sample}\n"
    )
    (out / "index.html").write_text(page)
