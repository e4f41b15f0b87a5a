"""Command line and environment of vLLM's server, as an engine of rollouts and for people. Torch-free.

An engine of rollouts takes ids and gives ids: it has no tokenizer, and the routes by which weights are sent. What
people ask has a tokenizer, a chat template and a parser of tool calls, and none of those routes.
"""

import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_davinci.serve.environment import VllmEnvironment
from megatron_davinci.serve.guard import TOKEN_VARIABLE

NAME = "policy"
# Arguments of vLLM that the two modes set, which no recipe may.
OURS = frozenset(
    [
        "model",
        "served-model-name",
        "host",
        "port",
        "dtype",
        "max-model-len",
        "load-format",
        "logprobs-mode",
        "enable-scale-out",
        "skip-tokenizer-init",
        "generation-config",
        "weight-transfer-config",
        "worker-extension-cls",
        "logits-processors",
        "middleware",
        "api-key",
        "uds",
    ]
)
_WORKER = "megatron_davinci.serve.worker"
# What would have several engines of which one alone is looked at, or weights in another form than the trainer's.
UNPROVEN = frozenset(
    [
        "data-parallel-size",
        "api-server-count",
        "quantization",
        "kv-cache-dtype",
        "speculative-config",
        "enable-lora",
        "config",
    ]
)
# Those of the trainer's ranks: a server that believes itself one of them waits for the others.
_OF_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK",
             "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
             "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "VLLM_API_KEY")  # fmt: skip
_CPU_CACHE_BYTES, _CPU_BATCH_TOKENS = 1 << 30, 4096


@dataclass(frozen=True)
class Serving:
    """What is served where: `model`, a directory; `dtype` as torch names it; `arguments` by vLLM's names."""

    environment: VllmEnvironment
    model: Path
    dtype: str
    max_model_len: int
    host: str
    port: int
    devices: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def is_among(name: str, arguments: Iterable[str]) -> bool:
    """Whether vLLM would take a name for one of these arguments: it takes beginnings, and parts behind a point."""
    plain = name.strip("-").replace("_", "-").partition(".")[0]
    return any(each.startswith(plain) for each in arguments)


def rollout_command(serving: Serving) -> list[str]:
    """The server of an engine: weights come by the protocol alone, none are read."""
    return [
        *_common(serving),
        "--disable-uvicorn-access-log",
        f"--served-model-name={NAME}",
        "--load-format=dummy",
        "--logprobs-mode=processed_logprobs",
        "--enable-scale-out",
        "--skip-tokenizer-init",
        "--generation-config=vllm",
        '--weight-transfer-config={"backend": "davinci"}',
        f"--worker-extension-cls={_WORKER}.transfer.WorkerExtension",
        f"--logits-processors={_WORKER}.answer_end:AnswerEndProcessor",
        "--middleware=megatron_davinci.serve.guard.TokenGuard",
    ]


def chat_command(
    serving: Serving, name: str, tool_parser: str | None, generation_config: Path | None = None
) -> list[str]:
    """The server for people and agents: OpenAI's protocol. `generation_config`: a directory with one in place of the
    model's own.
    """
    settings = [] if generation_config is None else [f"--generation-config={generation_config}"]
    tools = [] if tool_parser is None else ["--enable-auto-tool-choice", f"--tool-call-parser={tool_parser}"]
    return [*_common(serving), f"--served-model-name={name}", *settings, *tools]


def _common(serving: Serving) -> list[str]:
    given = {**_defaults(serving), **{name.strip("-").replace("_", "-"): v for name, v in serving.arguments.items()}}
    more = [_argument(name, value) for name, value in given.items()]
    return [
        str(serving.environment.python),
        "-m",
        "vllm.entrypoints.openai.api_server",  # the command `vllm` looks for a package of another name on the CPU
        f"--model={serving.model}",
        f"--host={serving.host}",
        f"--port={serving.port}",
        f"--dtype={serving.dtype}",
        f"--max-model-len={serving.max_model_len}",
        *more,
    ]


def _argument(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def _defaults(serving: Serving) -> dict[str, Any]:
    """On a CPU compiling takes minutes and gains nothing, and the cache would else take half the machine.

    A prompt in chunks kills the server there, where a request has a seed: "CPU Generator does not use offset".
    """
    if not serving.environment.on_cpu:
        return {}
    return {
        "enforce-eager": True,
        "kv-cache-memory-bytes": _CPU_CACHE_BYTES,
        "enable-chunked-prefill": False,
        "max-num-batched-tokens": max(serving.max_model_len, _CPU_BATCH_TOKENS),
    }


def server_environment(serving: Serving, token: str | None, modules: Path | None) -> dict[str, str]:
    """Variables of the server's process. `modules`: where its workers find this project's modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    for name in _OF_RANKS:
        kept.pop(name, None)
    # safe path: python -m would else import from the directory in which it is started
    kept |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    if serving.environment.on_cpu:
        kept |= {"TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""}
    if serving.devices is not None:
        kept["CUDA_VISIBLE_DEVICES"] = serving.devices
    if token is not None:
        kept |= {TOKEN_VARIABLE: token, "VLLM_SERVER_DEV_MODE": "1"}
    if modules is not None:
        kept["PYTHONPATH"] = str(modules)
    return kept


def free_port(host: str) -> int:
    """A port that nobody listens on, for now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
