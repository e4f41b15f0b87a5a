"""The servers of a run: one that it starts itself, or several that are there. Torch-free."""

import secrets
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep import InputError, WorkFailed
from data_prep.io.files import write_json
from megatron_davinci.models.config import ModelConfig
from megatron_davinci.serve.client import RolloutClient, ServerAddress, ServerError, read_addresses
from megatron_davinci.serve.command import Serving, free_port, rollout_command, server_environment
from megatron_davinci.serve.environment import check_version, find_environment
from megatron_davinci.serve.process import ServerProcess, remove_modules, worker_modules

LOOPBACK = "127.0.0.1"
_ARCHITECTURES = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
_POLL_SECONDS, _LOOK_SECONDS = 1.0, 10.0
_PORT_TAKEN = "ddress already in use"


class RolloutServers(ABC):
    """Where answers come from; `connect` is called at first, and again after a failure."""

    @abstractmethod
    def connect(self) -> list[ServerAddress]:
        """Have all servers ready, without weights. Raises InputError, WorkFailed and ServerError."""

    def what_it_said(self) -> str:
        """The reason of a failure, behind a semicolon, where it can be known here."""
        return ""

    @abstractmethod
    def close(self) -> None:
        """End what was started here."""


class StartedServer(RolloutServers):
    """A server beside this process, which ends with it. `directory`: for its model's description and its log."""

    def __init__(
        self,
        directory: Path,
        environment: str,
        model: ModelConfig,
        max_model_len: int,
        dtype: str,
        host: str = LOOPBACK,
        timeout: float = 600,
        devices: str | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._directory, self._environment, self._model, self._dtype = directory, environment, model, dtype
        self._max_model_len, self._host, self._timeout = max_model_len, host, timeout
        self._devices, self._arguments = devices, dict(arguments or {})
        self._process: ServerProcess | None = None
        self._modules: Path | None = None

    @property
    def process(self) -> ServerProcess | None:
        """The server's process, once it is started."""
        return self._process

    def connect(self) -> list[ServerAddress]:
        """Start it, anew where it runs; see `RolloutServers`."""
        self.close()
        environment = find_environment(self._environment)
        described = write_model_description(self._directory / "model", self._model, self._max_model_len)
        port, token = free_port(self._host), secrets.token_urlsafe(32)
        serving = Serving(
            environment, described, self._dtype, self._max_model_len, self._host, port, self._devices, self._arguments
        )
        self._modules = worker_modules()
        variables = server_environment(serving, token, self._modules)
        self._process = ServerProcess(rollout_command(serving), variables, self._directory / "server.log")
        address = ServerAddress(f"http://{_in_url(self._host)}:{port}", token, socket.gethostname())
        client = RolloutClient(address, _LOOK_SECONDS)
        try:
            self._process.wait_until(client.is_up, self._timeout)
            check_version(client.version(), address.url)
        except WorkFailed as error:
            self.close()
            if _PORT_TAKEN in str(error):  # meanwhile: another one will do
                raise ServerError(str(error)) from None
            raise
        except BaseException:
            self.close()
            raise
        finally:
            client.close()
        return [address]

    def what_it_said(self) -> str:
        """See `RolloutServers`."""
        if self._process is None or not self._process.has_ended():
            return ""
        return f"; the server has ended: {self._process.last_error()}; all of it: {self._process.log}"

    def close(self) -> None:
        """See `RolloutServers`."""
        if self._process is not None:
            self._process.close()
        if self._modules is not None:
            remove_modules(self._modules)
        self._process = self._modules = None


class GivenServers(RolloutServers):
    """Servers that write their addresses into a directory, and are started and ended by somebody else."""

    def __init__(self, directory: Path, count: int, timeout: float) -> None:
        self._directory, self._count, self._timeout = directory, count, timeout

    def connect(self) -> list[ServerAddress]:
        """Wait until all are there and answer; see `RolloutServers`. An address may be of a job that has ended."""
        deadline = time.monotonic() + self._timeout
        while True:
            written = read_addresses(self._directory)
            answering = [each for each in written if _is_up(each)][: self._count]
            if len(answering) == self._count:
                for address in answering:
                    _check(address)
                return answering
            if time.monotonic() > deadline:
                raise WorkFailed(
                    f"{self._directory} (objective.rollouts.servers) has {len(written)} addresses, of which "
                    f"{len(answering)} answer, and {self._count} are needed, after {self._timeout:g} s: start davinci "
                    "rollout serve for them"
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """See `RolloutServers`: they are not ours."""


def write_model_description(directory: Path, model: ModelConfig, max_model_len: int) -> Path:
    """A directory with the config.json that vLLM builds the model from."""
    config = {"architectures": [_ARCHITECTURES[model.family.model_type]], **model.huggingface}
    if model.rope_scaling is None:  # vLLM's table of rotations ends here, and answers beyond would be garbage
        config["max_position_embeddings"] = max(max_model_len, model.max_position_embeddings)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    return directory


def _is_up(address: ServerAddress) -> bool:
    client = RolloutClient(address, _LOOK_SECONDS)
    try:
        return client.is_up()
    finally:
        client.close()


def _check(address: ServerAddress) -> None:
    client = RolloutClient(address, _LOOK_SECONDS)
    try:
        check_version(client.version(), address.url)
    finally:
        client.close()


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def clients_of(addresses: Sequence[ServerAddress], timeout: float, vocab_size: int) -> list[RolloutClient]:
    """A client for each server."""
    return [RolloutClient(address, timeout, vocab_size) for address in addresses]


def node_address(name: str | None = None) -> str:
    """An address of this machine by which others reach it: that of `name`, unless it is the loopback's.

    Debian's /etc/hosts names the machine itself on the loopback; the way to another network tells then, on which
    nothing is sent. Raises InputError.
    """
    try:
        found = socket.gethostbyname(name or socket.gethostname())
    except OSError:
        found = LOOPBACK
    if found.startswith("127."):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))  # of an example network
            found = str(probe.getsockname()[0])
    if found.startswith("127."):
        raise InputError("this machine has no address by which others reach it: name one with --host, or a route")
    return found
