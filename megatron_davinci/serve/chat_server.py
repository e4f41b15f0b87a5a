"""A checkpoint served to people and agents, by OpenAI's protocol: tokenizer, chat template, parser of tool calls.

Torch-free where the checkpoint is a Hugging Face directory; another one is exported first.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from data_prep import InputError, WorkFailed
from data_prep.io.files import read_json, read_text
from megatron_davinci.models.config import ModelConfig, load_model_config
from megatron_davinci.serve.command import OURS, Serving, chat_command, free_port, is_among, server_environment
from megatron_davinci.serve.completions import CompletionClient
from megatron_davinci.serve.environment import DEFAULT_DIRECTORY, check_servable, find_environment
from megatron_davinci.serve.process import ServerProcess
from megatron_davinci.serve.turn_end import write_turn_end
from megatron_davinci.weights.paths import find_checkpoint

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_CPU_LONGEST = 8192
_DTYPES = ("float32", "float16", "bfloat16")
_START_SECONDS, _POLL_SECONDS = 1800, 0.5
# What a chat template asks a model to write -> vLLM's parser of it.
_TOOL_PARSERS = {"<function=": "qwen3_coder", "<tool_call>": "hermes", "<|python_tag|>": "llama3_json"}


@dataclass(frozen=True)
class ChatOptions:
    """`port` 0: a free one. `max_model_len` None: the model's own, on a CPU at most 8,192. `tool_parser` None: by the
    chat template. `api_key_file`: what askers must bear; nobody but this machine may listen without."""

    environment: str = DEFAULT_DIRECTORY
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    max_model_len: int | None = None
    tool_parser: str | None = None
    dtype: str = "auto"
    api_key_file: Path | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ChatServer:
    """A running server: `url` ends in /v1, `name` is the model's in it."""

    url: str
    name: str
    process: ServerProcess
    api_key: str | None


@contextmanager
def chat_server(checkpoint: Path, options: ChatOptions) -> Iterator[ChatServer]:
    """Serve a Hugging Face directory, a checkpoint, or a run's latest one, while the block runs.

    Raises InputError for what cannot be served, WorkFailed where the server does not start.
    """
    environment = find_environment(options.environment)
    api_key = _read_key(options)
    port = _checked_port(options)
    scratch = Path(tempfile.mkdtemp(prefix="davinci-serve-"))
    try:
        directory = servable_directory(checkpoint, scratch)
        model = load_model_config(str(directory))
        check_servable(model, environment)
        longest = options.max_model_len or _longest(model, environment.on_cpu)
        serving = Serving(
            environment,
            directory,
            _dtype(options.dtype, directory),
            longest,
            options.host,
            port,
            arguments=options.arguments,
        )
        name = options.name or checkpoint.resolve().name
        variables = server_environment(serving, None, None)
        if api_key is not None:
            variables["VLLM_API_KEY"] = api_key
        settings = scratch if write_turn_end(directory, scratch) else None
        command = chat_command(serving, name, options.tool_parser or _tool_parser(directory), settings)
        url = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{port}"
        process = ServerProcess(command, variables, scratch / "server.log")
        try:
            process.wait_until(lambda: _is_up(url), _START_SECONDS)
            yield ChatServer(f"{url}/v1", name, process, api_key)
        finally:
            process.close()
    except WorkFailed:  # whose log is of use
        shutil.rmtree(scratch / "hf", ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)


def servable_directory(checkpoint: Path, scratch: Path) -> Path:
    """A Hugging Face directory with a tokenizer: the given one, or one in `scratch` to which a checkpoint is exported.
    Raises InputError."""
    found = find_checkpoint(checkpoint)
    if found is None:
        if not (checkpoint / "config.json").is_file():
            raise InputError(f"{checkpoint} is neither a Hugging Face directory, nor a checkpoint, nor a run with one")
        directory = checkpoint.absolute()
    else:
        from megatron_davinci.weights.to_huggingface import export_to_hf

        _check_tokenizer(checkpoint, found / "hf")  # before gigabytes are written
        directory = scratch / "hf"
        export_to_hf(checkpoint, directory)
    _check_tokenizer(checkpoint, directory)
    return directory


def _check_tokenizer(checkpoint: Path, directory: Path) -> None:
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise InputError(f"{checkpoint} has no tokenizer: export it with one (davinci convert megatron-to-hf)")


def _dtype(asked: str, directory: Path) -> str:
    """The precision in which the weights are stored, where none is asked for: vLLM's own auto halves that of fp32."""
    config = read_json(directory / "config.json")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "").removeprefix("torch.")
    return stored if asked == "auto" and stored in _DTYPES else asked


def _longest(model: ModelConfig, on_cpu: bool) -> int:
    return min(model.max_position_embeddings, _CPU_LONGEST) if on_cpu else model.max_position_embeddings


def _tool_parser(directory: Path) -> str | None:
    """Which of vLLM's parsers reads the tool calls that the chat template shows; None where it shows none."""
    path = directory / "chat_template.jinja"
    held = read_json(directory / "tokenizer_config.json") if (directory / "tokenizer_config.json").is_file() else {}
    template = read_text(path) if path.is_file() else str(held.get("chat_template") or "")
    return next((parser for sign, parser in _TOOL_PARSERS.items() if sign in template), None)


def _read_key(options: ChatOptions) -> str | None:
    if options.api_key_file is not None:
        key = read_text(options.api_key_file).strip()
        if not key:
            raise InputError(f"{options.api_key_file} is empty: write the key into it")
        return key
    if options.host not in _LOOPBACK:
        raise InputError(
            f"--host {options.host} lets other machines ask: name a file with a key for them with --api-key-file"
        )
    return None


def _checked_port(options: ChatOptions) -> int:
    if options.port == 0:
        return free_port(options.host)
    with socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((options.host, options.port))
        except OSError as error:
            raise InputError(
                f"--port {options.port} of {options.host} cannot be listened on ({os.strerror(error.errno or 0)}): "
                "give another one, or 0 for one that is free"
            ) from None
    return options.port


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def vllm_arguments(given: Sequence[str]) -> dict[str, str | bool]:
    """vLLM's own arguments, as --name=value or --name. Raises InputError for one that this project sets."""
    found: dict[str, str | bool] = {}
    for argument in given:
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise InputError(f"{argument} is no argument of vLLM's: write it as --name=value")
        if is_among(name, OURS):
            raise InputError(f"{argument} is set by this command: see davinci serve --help for its own option")
        found[name] = value if equals else True
    return found


def serve_until_stopped(checkpoint: Path, options: ChatOptions) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP. Raises WorkFailed where the server ends by itself."""
    _end_as_by_ctrl_c()
    try:
        with chat_server(checkpoint, options) as server:
            print(f"{server.name} is served at {server.url}; Ctrl-C ends it", file=sys.stderr, flush=True)
            while not server.process.has_ended():
                time.sleep(_POLL_SECONDS)
            raise WorkFailed(f"the server has ended: {server.process.last_error()}; all of it: {server.process.log}")
    except KeyboardInterrupt:
        print("the server is ended", file=sys.stderr)


def sample_from(model: str, options: ChatOptions, prompt: str, chat: bool, max_tokens: int, temperature: float) -> str:
    """What a model says after a prompt; `model` is an address, or what `chat_server` serves. Raises InputError."""
    if model.startswith(("http://", "https://")):
        return _ask(CompletionClient(model), prompt, chat, max_tokens, temperature)
    _end_as_by_ctrl_c()
    with chat_server(Path(model), options) as server:
        return _ask(
            CompletionClient(server.url, server.name, server.api_key or ""), prompt, chat, max_tokens, temperature
        )


def _end_as_by_ctrl_c() -> None:
    """Other signals that end a command leave an exported model behind else. Where a script started it, SIGINT itself is
    ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


def _ask(client: CompletionClient, prompt: str, chat: bool, max_tokens: int, temperature: float) -> str:
    ask = client.chat if chat else client.complete_text
    return ask(prompt, max_tokens, temperature)
