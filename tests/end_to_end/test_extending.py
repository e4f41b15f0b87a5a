"""Every extension point takes a member from outside: the examples of docs/extending.md, run as they stand there."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import run_davinci
from language import write_recipe
from training import reported

from data_prep import InputError
from data_prep.io.files import read_jsonl
from data_prep.io.registry import Registry
from data_prep.sources.registry import SOURCES
from megatron_davinci.config import dump_recipe, parse_recipe
from megatron_davinci.config.objectives import Ntp
from megatron_davinci.config.registries import OBJECTIVES
from megatron_davinci.demo.reinforce import toy_recipe
from megatron_davinci.rl.rollout_files import read_rollouts, rollout_file

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
SECTIONS = {key: yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) for key in [text]}


UNFINISHED = """
from megatron_davinci.config.objectives import ObjectiveOptions, RolloutOptions
from megatron_davinci.config.rollouts import EngineOptions


class Objective(ObjectiveOptions):
    pass


class Rollouts(RolloutOptions):
    pass


class Engine(EngineOptions):
    pass
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """The page's modules, as files of a directory on PYTHONPATH."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, source in MODULES.items():
        (folder / name).write_text(source)
    return folder


@pytest.fixture
def davinci(modules: Path) -> Callable[..., str]:
    def run(*arguments: Any, code: int = 0) -> str:
        done = run_davinci(*arguments, PYTHONPATH=str(modules))
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    return run


def section(word: str) -> dict[str, Any]:
    """The objective of the page's recipe that names a word."""
    [found] = [values["objective"] for text, values in SECTIONS.items() if word in text]
    return found


def test_an_objective_from_outside(davinci: Callable[..., str], recipe_values: dict[str, Any], tmp_path: Path) -> None:
    losses = {}
    for name, objective in {"plain": {"kind": "ntp"}, "scaled": section("Scaled")}.items():
        values = {**recipe_values, "objective": objective, "checkpoint": {"dir": str(tmp_path / name)}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
        davinci("train", tmp_path / f"{name}.yaml")
        [losses[name]] = reported(tmp_path / name)
    assert losses["scaled"]["loss"] == pytest.approx(3 * losses["plain"]["loss"], rel=1e-5)
    assert losses["scaled"]["factor"] == 3.0 and "factor" not in losses["plain"]
    resolved = yaml.safe_load(next((tmp_path / "scaled").glob("step_*/recipe.yaml")).read_text())
    assert resolved["objective"] == section("Scaled")
    for other in ("objective.factor=4.0", "objective={kind: ntp}"):  # its options are part of what the run is
        refused = davinci("train", tmp_path / "scaled.yaml", other, code=2)
        assert "was trained with other data, length, batch size, seed or objective" in refused


def test_a_section_of_a_report_from_outside(modules: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "stage": "s", "loss": 2.0, "factor": 3.5}\n')
    subprocess.run([sys.executable, modules / "my_section.py", run, tmp_path / "page.html"], check=True)
    page = (tmp_path / "page.html").read_text()
    assert "<h3>Factors</h3>" in page and "run ends with factor 3.5" in page
    assert "Other metrics" in page  # what no section tells of is shown all the same


@pytest.mark.parametrize("word", ["Constant", "GSPO", "ANY_CASE"])
def test_parts_of_reinforcement_from_outside(
    davinci: Callable[..., str], taught: Path, tmp_path: Path, word: str
) -> None:
    values = toy_recipe(taught, 2, word)
    path = write_recipe(tmp_path, word, values, objective={**values["objective"], **section(word)})
    davinci("train", path)
    lines = reported(tmp_path / word)
    assert len(lines) == 2
    header, groups = read_rollouts(rollout_file(tmp_path / word / "rollouts", 0))
    if word == "Constant":
        assert header["engine"] == "my_engine:Constant"
        assert {tuple(r.tokens) for group in groups for r in group.responses} == {(7, 7, 7)}
    elif word == "GSPO":  # on-policy every ratio is 1, and the two terms of k1 are equal at first
        assert lines[0]["kl"] == pytest.approx(0.0, abs=1e-6) and lines[1]["kl"] != 0.0
        assert "clip_fraction" not in lines[0]
    else:
        assert 0 < lines[0]["accuracy"] < 1


def test_a_grader_of_problems_from_outside(davinci: Callable[..., str], taught: Path, tmp_path: Path) -> None:
    values = toy_recipe(taught, 1, "problems")
    [stage] = values["data"]["stages"]
    stage["blend"] = [{"corpus": str(taught / "problems")}]
    values["objective"] = {
        "kind": "grpo", "grader": "my_graders:same_text", "group_size": 4, "max_tokens": 8,
    }  # fmt: skip
    davinci("train", write_recipe(tmp_path, "problems", values))
    _, groups = read_rollouts(rollout_file(tmp_path / "problems" / "rollouts", 0))
    assert {response.correct for group in groups for response in group.responses} <= {True, False}


def test_a_source_and_a_format_from_outside(davinci: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "patches.txt").write_text("a.py x = 1\nb.py y = 2\n")
    davinci("data", "collect", "source", "my_data:Patches", tmp_path / "patches.txt", "--out", tmp_path / "records")
    davinci("data", "build", tmp_path / "records", "--format", "my_data:TITLES", "--out", tmp_path / "titles")
    samples = read_jsonl(tmp_path / "titles" / "samples" / "00000.jsonl.zst")
    assert [sample["text"] for sample in samples] == ["Add a.py\n", "Add b.py\n"]
    davinci("data", "build", tmp_path / "records", "--format", "general", "--out", tmp_path / "general")
    [first, _] = read_jsonl(tmp_path / "general" / "samples" / "00000.jsonl.zst")
    assert "Add a.py" in first["text"]  # and was replayed


def test_a_registered_name_is_as_good_as_a_path(recipe_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES, "_members", dict(OBJECTIVES._members))  # until this test ends

    class Mine(Ntp):
        kind: str = "mine"
        strength: float = 1.0

    name = "registered-in-a-test"
    OBJECTIVES.register(name, Mine)
    recipe = parse_recipe({**recipe_values, "objective": {"kind": name, "strength": 2.0}})
    assert recipe.stage(0).objective == Mine(kind=name, strength=2.0)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe
    with pytest.raises(InputError, match=r"unknown recipe key 'objective.strenth'; did you mean strength\?"):
        parse_recipe({**recipe_values, "objective": {"kind": name, "strenth": 2.0}})
    with pytest.raises(InputError, match="cannot name a new objective: it is taken"):
        OBJECTIVES.register(name, Mine)


@pytest.mark.parametrize(
    "objective, sentence",
    [
        ({"kind": "rtm"}, r"objective 'rtm' is unknown; did you mean rmt\?: give one of ntp, rmt, grpo"),
        ({"kind": "no_such_module:X"}, r"no_such_module:X cannot be imported \(No module named 'no_such_module'\)"),
        ({"kind": "json:dumps"}, "json:dumps is a function: a objective must be a subclass of .*ObjectiveOptions"),
        ({"kind": "rmt", "reward": {"grader": "exact"}}, "grader 'exact' is unknown"),
        ({"kind": "rmt", "policy": {"kind": "grop"}}, r"policy loss 'grop' is unknown; did you mean grpo\?"),
        ({"kind": "rmt", "kl_estimator": "json:none"}, "json:none cannot be imported: json has no none"),
        ({"kind": "rmt", "kl_estimator": "os:sep"}, "os:sep is a str: a KL estimator must be a function"),
        ({"kind": "rmt", "policy": {"kind": "json:dumps"}}, "json:dumps is a function: a policy loss must be an inst"),
        ({"kind": "rmt", "reward": {"grader": "json:dumps"}}, "json:dumps is a function: a grader must be an instance"),
        ({"kind": "unfinished:Objective"}, "unfinished:Objective lacks objective_class, which every subclass of Obj"),
        ({"kind": "unfinished:Rollouts"}, "lacks prompt_source_class, template, budget, reward, ntp_lambda, compon"),
        ({"kind": "rmt", "rollouts": {"engine": "unfinished:Engine"}}, "unfinished:Engine lacks engine_class"),
        ({"kind": "broken:X"}, "broken:X cannot be imported: broken fails with SyntaxError: .*; fix it"),
        ({"kind": "needy:X"}, r"needy:X cannot be imported \(No module named 'no_such_dependency'\)"),
        ({"kind": "grpo", "paper": {"ntp_context": "prefix"}}, "objective.paper.ntp_context has nothing to do in obje"),
        ({"kind": "rmt", "rollouts": {"engine": "vlm"}}, "rollout engine 'vlm' is unknown"),
        ({"kind": "grpo", "grader": "maths"}, r"problem grader 'maths' is unknown; did you mean math\?"),
    ],
)
def test_a_part_that_cannot_be_had_is_one_sentence(
    recipe_values: dict[str, Any],
    objective: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken.py").write_text("X = = 1\n")
    (tmp_path / "needy.py").write_text("import no_such_dependency\n")
    (tmp_path / "unfinished.py").write_text(UNFINISHED)
    with pytest.raises(InputError, match=sentence):
        parse_recipe({**recipe_values, "objective": objective})


def test_a_subclass_of_a_built_in_kind_is_named_by_its_path(
    recipe_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "derived.py").write_text(
        "from megatron_davinci.config.objectives import Rmt\n"
        "from megatron_davinci.config.rollouts import MegatronRollouts\n"
        "class MyRmt(Rmt):\n    strength: float = 1.0\n"
        "class MyEngine(MegatronRollouts):\n    speed: int = 1\n"
    )
    objective = {"kind": "derived:MyRmt", "strength": 2.0, "rollouts": {"engine": "derived:MyEngine", "speed": 3}}
    recipe = parse_recipe({**recipe_values, "objective": objective})
    assert (recipe.stage(0).objective.strength, recipe.stage(0).objective.rollouts.speed) == (2.0, 3)
    assert parse_recipe(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_git_is_a_source_by_its_name(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(["git", "init", "-q", clone], check=True)
    for text in ("a\n", "b\n"):
        (clone / "a.txt").write_text(text)
        subprocess.run(["git", "-C", clone, "add", "."], check=True)
        who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", clone, *who, "commit", "-q", "-m", "Change a"], check=True)
    assert len(list(SOURCES.get("git")(str(clone)).changes())) == 1


def test_members_are_objects_or_paths() -> None:
    registry: Registry[Any] = Registry("thing", {"path": "json:dumps"})
    registry.register("object", len)
    assert registry.get("path") is __import__("json").dumps and registry.get("object") is len
    assert registry.get("os:getcwd") is os.getcwd and registry.names() == ["path", "object"]
