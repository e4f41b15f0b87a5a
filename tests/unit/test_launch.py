"""Tests of launching: the script says what the recipe needs, quotes what it is given, and ends when nothing moves."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from conftest import write_model
from typer.testing import CliRunner

from data_prep import InputError
from megatron_davinci.cli.app import app
from megatron_davinci.config import Recipe, load_recipe, parse_recipe
from megatron_davinci.launch.fit import check_ranks, check_rollout_nodes
from megatron_davinci.launch.gpu_memory import check_memory, keep_or_drop_plan, plan_memory, visible_gpu_gibibytes
from megatron_davinci.launch.ranks import adopt_slurm_ranks
from megatron_davinci.launch.script import Job, local_script
from megatron_davinci.launch.slurm import Slurm, slurm_script
from megatron_davinci.launch.start import check_here, submit
from megatron_davinci.launch.state import state_of
from megatron_davinci.plan.peak import doubts_about_memory

DAVINCI = [sys.executable, "-c", "from megatron_davinci.cli import main; main()"]


@pytest.fixture
def recipe(recipe_values: dict[str, Any]) -> Recipe:
    [first] = recipe_values["data"]["stages"]
    recipe_values["data"]["stages"].append({**first, "name": "wide", "megatron": {"tensor_model_parallel_size": 4}})
    return parse_recipe(
        {**recipe_values, "megatron": {"tensor_model_parallel_size": 2}, "model": recipe_values["model"]}
    )


@pytest.fixture(autouse=True)
def four_heads(recipe_values: dict[str, Any]) -> None:
    write_model(Path(recipe_values["model"]), num_key_value_heads=4)


def job(folder: Path, **changes: Any) -> Job:
    return Job(**{"recipe": Path("a recipe.yaml"), "overrides": [], "run": str(folder / "run"), "nodes": 1,
                  "per_node": 2, "python": sys.executable, **changes})  # fmt: skip


@pytest.mark.parametrize(
    "nodes, per_node, sentence",
    [
        (1, 4, None),
        (2, 4, None),
        (
            3,
            2,
            "3 nodes of 2 are 6 ranks; a replica takes 2 in stage only, 4 in stage wide: give a multiple of 4, such as "
            "--nodes 2",
        ),
        (2, 6, "stage wide has tensor_model_parallel_size 4, which nodes of 6 cut apart"),
        (20, 4, "stage only would have 40 replicas share a batch of 18 samples: give fewer nodes, or a larger batch"),
    ],
)
def test_every_stage_must_fit(recipe: Recipe, nodes: int, per_node: int, sentence: str | None) -> None:
    if sentence is None:
        check_ranks(recipe, nodes, per_node)
        return
    with pytest.raises(InputError, match=sentence):
        check_ranks(recipe, nodes, per_node)


def test_the_script_is_shell_and_quotes(tmp_path: Path) -> None:
    for script in (
        local_script(job(tmp_path, overrides=["data.stages.0.name=a b; exit 7"])),
        local_script(job(tmp_path, nodes=2)),
        slurm_script(job(tmp_path), Slurm(chain=2, container="image.sqsh", mounts=["/my models"], more=["--qos=high"])),
    ):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "'a recipe.yaml' 'data.stages.0.name=a b; exit 7'" in local_script(
        job(tmp_path, overrides=["data.stages.0.name=a b; exit 7"])
    )


def test_rollout_servers_have_nodes_of_their_own(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    """The last ones; what the recipe waits for is what they start."""
    script = slurm_script(job(tmp_path, nodes=2, per_node=8), Slurm(rollout_nodes=2))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert "#SBATCH --nodes=4\n" in script and '--nodelist="${nodes[2 + number]}"' in script
    assert '--nodes=2 --ntasks=16 --nodelist="$(IFS=,; echo "${nodes[*]:0:2}")"' in script
    assert "rollout serve" not in slurm_script(job(tmp_path, nodes=2), Slurm())
    servers = str(Path(recipe_values["checkpoint"]["dir"]) / "servers")

    def check(nodes: int, slurm: bool = True, **rollouts: Any) -> None:
        objective = {"kind": "rmt", "rollouts": {"engine": "vllm", **rollouts}}
        check_rollout_nodes(parse_recipe({**recipe_values, "objective": objective}), nodes, slurm)

    check(2, servers=servers, num_servers=2)
    check(0, servers=servers, num_servers=2)
    for sentence, arguments in {
        "is for Slurm: add --slurm": {"slurm": False},
        "no stage waits for servers: set objective.rollouts to {engine: vllm": {},
        "waits for 3 servers in .*, and --rollout-nodes 2 start as many": {"servers": servers, "num_servers": 3},
        "waits for 2 servers in elsewhere": {"servers": "elsewhere", "num_servers": 2},
    }.items():
        with pytest.raises(InputError, match=sentence):
            check(2, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "time, seconds",
    [("11", 660), ("10:30", 630), ("0:11:00", 660), ("1-0", 86400), ("0-1:30", 5400), ("1-1:1:1", 90061)],
)
def test_a_limit_must_leave_time_to_work(time: str, seconds: int) -> None:
    Slurm(time=time, warning=seconds - 1)
    Slurm(time="UNLIMITED", warning=seconds)
    with pytest.raises(InputError, match=f"--time {time} is a limit of {seconds} s, and jobs save {seconds} s before"):
        Slurm(time=time, warning=seconds)


def test_a_limit_that_slurm_would_not_read_is_named() -> None:
    with pytest.raises(InputError, match="--time 2h is no limit of Slurm's"):
        Slurm(time="2h")


def test_slurm_is_told_what_the_job_needs(tmp_path: Path) -> None:
    wanted = Slurm(time="08:00:00", partition="h100", account="lab", warning=300, more=["--qos=high"])
    script = slurm_script(job(tmp_path, nodes=32, per_node=8), wanted)
    for option in ("nodes=32", "ntasks-per-node=8", "gpus-per-node=8", "time=08:00:00", "partition=h100", "account=lab",
                   "signal=USR1@300", "requeue", "qos=high", "exclusive", "mem=0"):  # fmt: skip
        assert f"#SBATCH --{option}\n" in script
    for_cpus = slurm_script(job(tmp_path, gpus=False), Slurm())
    assert not any(option in for_cpus for option in ("gpus", "exclusive", "mem="))
    inside = slurm_script(job(tmp_path), Slurm(container="image.sqsh", mounts=["/models", "/data"]))
    assert '--container-mounts="$PWD:$PWD",/models:/models,/data:/data ' in inside
    chained = slurm_script(job(tmp_path), Slurm(chain=3))
    assert "scontrol requeue" not in chained and "--no-requeue" in chained


def test_a_run_that_moves_no_more_ends(tmp_path: Path) -> None:
    """The interpreter stands for training that does nothing: it is not started for ever."""
    (tmp_path / "python").write_text(
        f'#!/bin/sh\n[ "$2" = megatron_davinci.launch.state ] && exec {sys.executable} "$@"\nexit 0\n'
    )
    (tmp_path / "python").chmod(0o755)
    script = local_script(job(tmp_path, python=str(tmp_path / "python")))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "nothing was saved after 0" in done.stderr


@pytest.mark.parametrize(
    "chain, failed_before, code, saved, ending, said",
    [
        (1, None, 0, 9, 0, "requeue 7"),  # stopped by a signal
        (1, None, 1, 9, 0, "requeue 7"),  # failed after a checkpoint
        (1, None, 1, 5, 0, "requeue 7"),  # failed for the first time
        (1, "3", 1, 5, 0, "requeue 7"),  # and elsewhere before
        (1, "5", 1, 5, 1, "not started again: exit code 1, nothing saved after 5"),
        (1, None, 0, 5, 1, "not started again: exit code 0"),
        (1, None, 2, 9, 2, "not started again: exit code 2"),  # refused
        (3, None, 1, 5, 0, "the next job of the chain goes on"),
        (3, "5", 1, 5, 1, "not started again"),
    ],
)
def test_a_job_goes_on_while_that_helps(
    tmp_path: Path, chain: int, failed_before: str | None, code: int, saved: int, ending: int, said: str
) -> None:
    """The interpreter stands for training: it says how far the run is, 5 steps before and `saved` after."""
    run, commands = tmp_path / "a run", tmp_path / "bin"
    commands.mkdir()
    run.mkdir()
    if failed_before:
        (run / "failed-after").write_text(failed_before)
    for name, does in {
        "python": f"echo $([ -f {tmp_path}/ran ] && echo {saved} || echo 5)",
        "srun": f"touch {tmp_path}/ran; exit {code}",
        "scontrol": "echo $@",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{does}\n")
        (commands / name).chmod(0o755)
    script = slurm_script(job(tmp_path, run=str(run), python="python"), Slurm(chain=chain))
    environment = {"PATH": f"{commands}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ending and said in done.stdout + done.stderr
    assert (run / "failed-after").is_file() == (code == 1 and saved == 5 and failed_before != "5")
    assert (run / "gave-up").is_file() == bool(ending)
    after = {**environment, "SLURM_JOB_ID": "8", "SLURM_JOB_DEPENDENCY": "afterany:7"}
    (tmp_path / "ran").unlink()
    next_one = subprocess.run(["bash", "-c", script], env=after, capture_output=True, text=True, check=False)
    assert ("the job before gave up" in next_one.stderr) == (chain > 1 and bool(ending))
    assert (tmp_path / "ran").is_file() == (chain == 1 or not ending)


def test_the_state_of_a_run(tmp_path: Path) -> None:
    assert state_of(tmp_path) == "0"
    (tmp_path / "step_0000004").mkdir()
    (tmp_path / "latest").write_text("step_0000004\n")
    for step, said in ((4, "4"), (9, "finished")):
        (tmp_path / "step_0000004" / "progress.json").write_bytes(orjson.dumps({"step": step, "num_steps": 9}))
        assert state_of(tmp_path) == said


def test_several_nodes_without_slurm_must_know_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="2 nodes without Slurm need MASTER_ADDR"):
        check_here(job(tmp_path, nodes=2))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with socket.create_server(("", 0)) as server:
        with pytest.raises(InputError, match="is in use: give another --port"):
            check_here(job(tmp_path, nodes=2, port=server.getsockname()[1]))
        free = server.getsockname()[1]
    check_here(job(tmp_path, nodes=2, port=free))


@pytest.mark.parametrize(
    "sizes, shared, ranks, sentence",
    [
        ((8, 8), True, 64, None),
        ((8, 1), True, 32, None),
        (
            (8, 1),
            True,
            16,
            "takes 101.6 GiB a rank .* a GPU has 80: give 32 ranks, which share out the optimizer",
        ),
        ((8, 1), False, 32, "takes 152.4 GiB a rank .*: raise tensor_model_[a-z_ ]*, or set megatron.use_distributed"),
        ((4, 1), True, 512, "raise tensor_model_parallel_size or pipeline_model_parallel_size, or give the memory"),
    ],
)
def test_what_no_gpu_can_hold_is_refused(
    recipe_values: dict[str, Any], sizes: tuple[int, int], shared: bool, ranks: int, sentence: str | None
) -> None:
    tensor, pipeline = sizes
    layout = {"tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": pipeline}
    megatron = {"bf16": True, "use_distributed_optimizer": shared, "overlap_grad_reduce": shared, **layout}
    recipe = parse_recipe({**recipe_values, "model": "qwen2.5-72b", "megatron": megatron})
    with pytest.raises(InputError, match=sentence) if sentence else nullcontext():
        check_memory(recipe, ranks, 80)


def test_what_saving_takes_besides_is_counted(recipe_values: dict[str, Any]) -> None:
    """Of one bucket, which Megatron gathers on every GPU."""
    megatron = {"bf16": True, "use_distributed_optimizer": True}
    with pytest.raises(InputError, match=r"takes 8\d\.\d GiB a rank while a checkpoint is made, .*overlap_grad_reduce"):
        check_memory(parse_recipe({**recipe_values, "model": "qwen2.5-7b", "megatron": megatron}), 8, 80)
    overlapped = {**megatron, "overlap_grad_reduce": True}
    check_memory(parse_recipe({**recipe_values, "model": "qwen2.5-7b", "megatron": overlapped}), 8, 80)


def test_without_slurm_on_the_path_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch is not on the path"):
        submit(job(tmp_path), Slurm())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tasks, rank", [("1", None), ("4", "3")])
def test_ranks_are_sruns_where_it_started_several(
    monkeypatch: pytest.MonkeyPatch, tasks: str, rank: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {
        "SLURM_STEP_NUM_TASKS": tasks, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "node", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1", "PATH": "",
        "MASTER_ADDR": "first",
    })  # fmt: skip
    adopt_slurm_ranks()
    assert os.environ.get("RANK") == rank
    if rank is not None:
        assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"], os.environ["MASTER_ADDR"]) == ("4", "1", "first")
        assert 20000 <= int(os.environ["MASTER_PORT"]) < 32768


def test_options_that_do_not_go_together(recipe_values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values))
    done = subprocess.run(
        [*DAVINCI, "launch", str(tmp_path / "r.yaml"), "--partition", "x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "without --slurm" in done.stderr and done.stderr.count("\n") == 1


SEVENTY_TWO = Path(__file__).parents[2] / "examples" / "davinci-72b" / "recipe.yaml"


def seventy_two(*overrides: str) -> Recipe:
    return load_recipe(SEVENTY_TWO, list(overrides), with_weights=False)


def test_a_peak_within_the_margin_is_warned_of_and_one_beyond_is_refused() -> None:
    """The first stage is predicted to take 68.1 GiB, activations and all, the other 65.5."""
    assert doubts_about_memory(seventy_two(), 512, 80) == []
    [doubt] = doubts_about_memory(seventy_two(), 512, 72)
    assert "stage general is predicted to take 68.1 GiB on pipeline rank 0 (activations 49.2, " in doubt
    assert "may run out of memory" in doubt
    assert "it will run out of memory there" in doubts_about_memory(seventy_two(), None, 16, refuse=False)[0]
    assert len(doubts_about_memory(seventy_two(), 512, 68.5)) == 2
    with pytest.raises(InputError, match=r"stage general .* GPU has 64: davinci plan shows layouts that fit"):
        doubts_about_memory(seventy_two(), 512, 64)
    one_stage = load_recipe(SEVENTY_TWO.parents[1] / "davinci-one-stage" / "recipe.yaml", [], with_weights=False)
    with pytest.raises(InputError, match="stage python"):
        doubts_about_memory(one_stage, 512, 40)


def test_the_size_of_a_gpu_is_what_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    """Without a size the state alone must fit in 80 GiB; a driver's, where one is on the path, counts for jobs here."""
    plan_memory(seventy_two(), 512, None, None, here=False)
    assert capfd.readouterr().err == ""
    with pytest.raises(InputError, match="GPU has 40"):
        plan_memory(seventy_two(), 512, "a100", 40, here=False)
    wide = seventy_two("batch.micro_batch_size=2")
    plan_memory(wide, 512, None, None, here=False)
    assert "it will run out of memory there" in (said := capfd.readouterr().err) and "80 GiB is a guess" in said
    fp8 = load_recipe(SEVENTY_TWO.with_name("fp8.yaml"), [], with_weights=False)
    with pytest.raises(InputError, match="stage general has fp8 hybrid, which a100 cannot compute in"):
        plan_memory(fp8, 512, "a100", None, here=False)
    with pytest.raises(InputError, match="GPU has 40"):
        plan_memory(seventy_two(), 512, None, 40, here=False)
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 73728\necho 81559\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert visible_gpu_gibibytes() == 72
    plan_memory(seventy_two(), 512, None, None, here=True)
    assert "warning: stage general is predicted" in capfd.readouterr().err
    plan_memory(seventy_two(), 512, None, None, here=False)
    plan_memory(seventy_two(), 512, "h200", None, here=True)
    assert capfd.readouterr().err == ""
    for broken in ("exit 9", "echo ERR!", "true"):
        smi.write_text(f"#!/bin/sh\n{broken}\n")
        assert visible_gpu_gibibytes() is None


def test_launch_refuses_a_layout_that_does_not_fit_and_keeps_a_plan(
    tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    """The script is not started: there is no sbatch on the path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [
        "launch",
        str(SEVENTY_TWO),
        "init_from=null",
        f"checkpoint.dir={tmp_path / 'run'}",
        "--nodes",
        "64",
        "--slurm",
    ]
    refused = CliRunner().invoke(app, [*words, "batch.micro_batch_size=2", "--gpu", "h100", "--dry-run"])
    assert isinstance(refused.exception, InputError) and "is predicted to take" in str(refused.exception)
    shown = CliRunner().invoke(app, [*words, "--gpu", "h100", "--dry-run"])
    assert shown.exit_code == 0 and "srun" in shown.output and not (tmp_path / "run").exists()
    CliRunner().invoke(app, [*words, "--gpu", "h100"])
    plan = orjson.loads((tmp_path / "run" / "plan.json").read_bytes())
    assert [stage["name"] for stage in plan["stages"]] == ["general", "python+rollouts"] and plan["gpus"] == 512
    assert all(stage["best"] == [] and stage["own"]["step_seconds"] > 1 for stage in plan["stages"])
    file = tmp_path / "file"
    file.touch()
    keep_or_drop_plan(seventy_two(f"checkpoint.dir={file}"), 512, "h100")  # which training itself refuses
    assert "no plan for the report" in capfd.readouterr().err
    CliRunner().invoke(app, words)  # another launch, whose plan nobody asked for
    assert not (tmp_path / "run" / "plan.json").exists()
