"""`davinci bench ...`. Imports nothing heavy before a command runs."""

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from data_prep.cli.app import AsJson, local_model, local_tokenizer
from data_prep.cli.groups import command_group
from data_prep.io.errors import WorkFailed
from data_prep.io.summary import print_summary

app = command_group("How fast it is here.")
Grid = Annotated[list[str] | None, typer.Option(help="key=a,b: every combination is tried; repeatable.")]


@app.command("train")
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file (YAML); its corpora are trained on, nothing is saved.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, the same for all layouts")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks on this node.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each trial.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="The first of them, which do not count.")] = 3,
    grid: Grid = None,
    out: Annotated[Path | None, typer.Option(help="NAME: writes NAME.json and NAME.md.")] = None,
    calibration: Annotated[
        Path | None, typer.Option("--calibrate", help="FILE.yaml: this machine as a device for davinci plan --gpu.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tokens a second (of documents, with padding, with loss), MFU, memory and step times, layout by layout.

    Example: davinci bench train recipe.yaml --ranks 8 --grid megatron.tensor_model_parallel_size=2,4,8 --out h100
    """
    from data_prep.io.files import refuse_existing, write_json
    from megatron_davinci.bench.calibrate import calibrate, write_device
    from megatron_davinci.bench.grid import combinations
    from megatron_davinci.bench.report import trials_table
    from megatron_davinci.bench.train import run_trials

    for suffix in (".json", ".md"):
        refuse_existing(out and out.with_name(out.name + suffix))
    refuse_existing(calibration)
    layouts = [[*(overrides or []), *chosen] for chosen in combinations(grid or [])]
    trials = run_trials(recipe, layouts, ranks, steps, warmup)
    table = trials_table(trials)
    typer.echo(orjson.dumps(trials).decode() if as_json else table.rstrip())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out.with_name(out.name + ".json"), trials)
        out.with_name(out.name + ".md").write_text(table)
    if all("fault" in trial for trial in trials):
        raise WorkFailed("no layout could be measured: the table has the reasons")
    if calibration is not None:
        device, errors = calibrate(recipe, trials, calibration.stem)
        write_device(device, calibration)
        worst = max(abs(error - 1) for error in errors)
        typer.echo(f"{calibration}: explains the seconds of {len(errors)} trials, the worst to {worst:.1%}")


@app.command("compare")
def compare(
    one: Annotated[Path, typer.Argument(help="NAME.json of davinci bench train.")],
    other: Annotated[Path, typer.Argument(help="Another.")],
) -> None:
    """The second report's figures over the first's, layout by layout.

    Example: davinci bench compare old.json new.json
    """
    from data_prep.io.files import read_json
    from megatron_davinci.bench.report import compare_trials

    typer.echo(compare_trials(read_json(one), read_json(other)), nl=False)


@app.command("data")
def data(
    inputs: Annotated[list[str], typer.Argument(help="As for davinci data tokenize.")],
    tokenizer: Annotated[Path, typer.Option(callback=local_tokenizer, help="As for davinci data tokenize.")],
    seq_length: Annotated[int, typer.Option(min=1, help="Tokens of a packed sequence.")] = 32768,
    workers: Annotated[int, typer.Option(min=1, help="Processes that encode.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Text to tokens to packed sequences, into a folder that goes again.

    Example: davinci bench data 'texts/*.jsonl' --tokenizer qwen.tiktoken
    """
    from megatron_davinci.bench.data import measure_data

    print_summary(measure_data(inputs, tokenizer, seq_length, workers), as_json)


@app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(callback=local_model, help="A Hugging Face directory.")],
    as_json: AsJson = False,
) -> None:
    """A model to Megatron's form and back, beside copying its files. Example: davinci bench convert Qwen2.5-7B"""
    from megatron_davinci.bench.convert import measure_conversion

    found: dict[str, Any] = measure_conversion(source)
    print_summary(found, as_json)
