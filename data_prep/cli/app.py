"""The command group that all commands join, and the options that several have."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data_prep.cli.groups import command_group

app = command_group(
    "Git histories -> samples -> tokens -> packed sequences.",
    "collect enhance build environments deduplicate tokenize shards pack decontaminate inspect verify merge adopt",
)
collect = command_group("Collect changes from a source into records.")
app.add_typer(collect, name="collect")

Executor = Literal["local", "slurm", "ray"]
Tasks = Annotated[int, typer.Option(help="Tasks that share the shards.")]
Workers = Annotated[int, typer.Option(help="Tasks at a time.")]
ExecutorKind = Annotated[Executor, typer.Option("--executor", help="Where tasks run: local, slurm or ray.")]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option("--option", help="name=value for datatrove's executor: partition=cpu, time=04:00:00 ..."),
]


def plain_prefix(given: Any) -> Any:
    """PREFIX of a corpus, also where one of its files is named: PREFIX.bin or PREFIX.idx."""
    if isinstance(given, list | tuple):
        return [plain_prefix(each) for each in given]
    if isinstance(given, str | Path) and Path(given).suffix in (".bin", ".idx"):
        return type(given)(Path(given).with_suffix(""))
    return given


def local_tokenizer(path: Path | None) -> Path | None:
    """The path of a tokenizer, or where the files of OWNER/NAME on the Hugging Face hub lie here."""
    from data_prep.io.hub import HUB_TOKENIZER_FILES, found_path

    return path and found_path(path, HUB_TOKENIZER_FILES)


def local_model(path: Path | None) -> Path | None:
    """The path of a model, or where the files of OWNER/NAME on the Hugging Face hub lie here."""
    from data_prep.io.hub import found_path

    return path and found_path(path)


AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
