"""Property: every command has help of 80 columns with an example, is refused in one sentence, and loads lightly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from training import DAVINCI, progress, write_recipe

from megatron_davinci.cli.app import app

ROOT = Path(__file__).parents[2]
HEAVY = ("pydantic", "torch", "megatron.core", "numpy", "pyarrow", "transformers", "httpx", "datatrove")


def every_command(group: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Name -> command, in the order of the help."""
    found: dict[str, Any] = {}
    for name in group.list_commands(typer.Context(group)):
        command = group.get_command(typer.Context(group), name)
        found |= every_command(command, (*path, name)) if hasattr(command, "commands") else {}
        found[" ".join((*path, name))] = command
    return found


COMMANDS = every_command(typer.main.get_command(app))
LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}
# What only does something, or shows pages, has no figures for a script.
WITHOUT_JSON = {
    "demo", "launch", "serve", "sample", "report", "rmt figure", "rollout setup", "rollout serve", "examples copy",
    "convert megatron-to-hf", "convert hf-to-megatron", "data inspect", "data environments inspect", "bench compare",
    "eval next-token", "eval checkpoints", "eval export-lm-eval", "eval swe-bench-table",
}  # fmt: skip


def run(*words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    known = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run([*DAVINCI, *words], env=known, capture_output=True, text=True, check=False, timeout=120)


def test_help_of_every_command_fits_80_columns_and_loads_nothing_heavy() -> None:
    program = f"""
import io, sys, contextlib
from megatron_davinci.cli import main
for name in {list(COMMANDS)!r}:
    sys.argv, text = ["davinci", *name.split(), "-h"], io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main()
    lines = text.getvalue().splitlines()
    assert lines and max(map(len, lines)) <= 80, (name, max(lines, key=len))
    assert "…" not in text.getvalue(), name
    assert "<bool>" not in text.getvalue(), name
print(*[each for each in {HEAVY!r} if each in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr[-2000:]


@pytest.mark.parametrize("name", LEAVES)
def test_a_command_shows_an_example_and_has_json_where_a_script_reads(name: str) -> None:
    command = LEAVES[name]
    assert (command.epilog or "").startswith(f"Example: davinci {name}"), command.epilog
    options = {each for option in command.params for each in option.opts}
    assert ("--json" in options) == (name not in WITHOUT_JSON)


WITHOUT_NEEDS = ("demo", "doctor", "rollout setup", "eval benchmarks", "examples list", "rmt figure")
"""What does its work without an argument, or is tried elsewhere."""
GROUPS = sorted({name.split()[0] for name in LEAVES if name not in WITHOUT_NEEDS})


@pytest.mark.parametrize("group", GROUPS)
def test_whatever_is_given_no_command_ends_in_a_traceback(group: str, tmp_path: Path) -> None:
    """A path that is not there in place of each argument and needed option; then options that do not exist."""
    lines: list[list[str]] = []
    for name in (name for name in LEAVES if name.split()[0] == group and name not in WITHOUT_NEEDS):
        words = name.split()
        for option in LEAVES[name].params:
            flag = [each for each in option.opts if each.startswith("--")]
            if option.required or (not flag and option.name != "overrides"):
                words += [*flag[:1], str(tmp_path / "nowhere" / option.name)]
        lines += [words, [*name.split(), "--no-such-option"]]
    program = f"""
import contextlib, io, json, sys, traceback
from megatron_davinci.cli import main
for words in {lines!r}:
    sys.argv, said, code = ["davinci", *words], io.StringIO(), None
    with contextlib.redirect_stderr(said):
        try: main()
        except SystemExit as end: code = end.code
        except BaseException: traceback.print_exc()
    print(json.dumps([words, code, said.getvalue()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240
    )
    ended = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('[["')]
    assert [words for words, _, _ in ended] == lines, done.stderr[-3000:]
    for words, code, said in ended:
        assert code == 2 and "Traceback" not in said, (words, said[-3000:])
        assert said.startswith("error: ") or "Usage" in said, (words, said)


@pytest.mark.parametrize("package, command", [
    ("torch", ["train", "recipe.yaml"]),
    ("torch", ["demo"]),
    ("megatron", ["rmt", "annotate", "x", "--model", "."]),
    ("matplotlib", ["rmt", "figure", "."]),
    ("datatrove", ["data", "deduplicate", "texts.jsonl", "--out", "o"]),
])  # fmt: skip
def test_a_missing_package_is_one_line_to_copy(
    package: str, command: list[str], tmp_path: Path, recipe_values: dict[str, Any]
) -> None:
    write_recipe(recipe_values, tmp_path, "recipe")
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n')
    block = f"import sys; sys.modules[{package!r}] = None\n"
    program = f"{block}sys.argv = {['davinci', *command]!r}\nfrom megatron_davinci.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert package in done.stderr and "pip install" in done.stderr


def test_ctrl_c_in_training_saves_and_says_how_to_go_on(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    recipe_values["data"]["stages"][0]["epochs"] = 2000
    recipe = write_recipe(recipe_values, tmp_path, "run")
    training = subprocess.Popen(
        [*DAVINCI, "train", str(recipe)], stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    )
    assert training.stderr is not None
    for line in training.stderr:
        if line.startswith("step    3"):
            break
    training.send_signal(signal.SIGINT)
    said = training.stderr.read()
    assert training.wait(60) == 130
    assert "Ctrl-C: saving after this step" in said and "done and saved; the same command goes on" in said, said
    assert "Traceback" not in said and progress(tmp_path / "run")["step"] >= 3


def test_a_second_ctrl_c_ends_training_at_once(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """The first is noted, also where torchrun passes it on; a later one ends a step that does not."""
    program = (
        "import signal, sys, time, torch\n"
        "from megatron_davinci.train.signals import StopRequest\n"
        "with StopRequest(torch.device('cpu')).install_handlers():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for wait in (0.1, 1.5):  # the first, and the same again as torchrun passes it on: noted; later: the end
        process.send_signal(signal.SIGINT)
        time.sleep(wait)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "KeyboardInterrupt" in errors and errors.count("Ctrl-C: saving after this step; once more") == 1


def listen_to_ctrl_c() -> None:
    """Programs that a shell starts in its background ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize(
    "words, said",
    [
        (["data", "tokenize", "texts.jsonl", "--tokenizer", "model", "--out", "corpus"], "the same command goes on"),
        (["data", "merge", "a", "b", "--out", "c"], "the same command begins anew"),
    ],
)
def test_ctrl_c_says_what_is_kept(words: list[str], said: str, tmp_path: Path) -> None:
    """The command is ended where it begins to work: what it would do is replaced by a wait."""
    program = (
        "import sys, time\n"
        "import data_prep.tokenize.tokenize as t, data_prep.corpus.merge as m\n"
        "from data_prep.corpus.indexed import Corpus\n"
        "def wait(*_, **__): print('working', flush=True); time.sleep(60)\n"
        "t.tokenize = m.merge_corpora = wait; Corpus.open_all = lambda prefixes: []\n"
        f"sys.argv = {['davinci', *words]!r}\n"
        "from megatron_davinci.cli import main; main()"
    )
    (tmp_path / "model").mkdir()
    command = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=listen_to_ctrl_c,
    )  # fmt: skip
    assert command.stdout is not None and command.stdout.readline() == "working\n"
    time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 130 and errors.strip().startswith("interrupted: ") and said in errors, errors


def test_output_folders_are_inputs(tmp_path: Path) -> None:
    """What `build` and `deduplicate` leave out is never tokenized; what holds no texts is refused by what it is."""
    from data_prep import InputError
    from data_prep.tokenize.inputs import expand

    for name in ("samples/00000.jsonl.zst", "rejected/00000.jsonl.zst", "summary.json"):
        (tmp_path / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "built" / name).touch()
    assert [path.parent.name for path in expand([str(tmp_path / "built")])] == ["samples"]
    for name in ("passing.jsonl.zst", "failing.jsonl.zst", "rejected.jsonl.zst", "summary.json"):
        (tmp_path / "talks").mkdir(exist_ok=True)
        (tmp_path / "talks" / name).touch()
    with pytest.raises(InputError, match=r"passing\.jsonl\.zst and failing\.jsonl\.zst: name those that you mean"):
        expand([str(tmp_path / "talks")])
    (tmp_path / "talks" / "failing.jsonl.zst").unlink()
    assert [path.name for path in expand([str(tmp_path / "talks")])] == ["passing.jsonl.zst"]
    (tmp_path / "mined" / "records").mkdir(parents=True)
    (tmp_path / "mined" / "summary.json").touch()
    (tmp_path / "mined" / "records" / "00000.jsonl.zst").touch()
    with pytest.raises(InputError, match="holds no texts but records: davinci data build"):
        expand([str(tmp_path / "mined")])
    (tmp_path / "own").mkdir()
    for name in ("summary.json", "texts.jsonl"):  # a folder of one's own that happens to hold such a name
        (tmp_path / "own" / name).touch()
    assert [path.name for path in expand([str(tmp_path / "own")])] == ["summary.json", "texts.jsonl"]
