"""From NAME=MODEL to a model that answers, and what its weights are known by."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xxhash import xxh3_64

from data_prep.io.errors import InputError
from data_prep.io.registry import nearest
from megatron_davinci.evaluate.model_names import is_address
from megatron_davinci.evaluate.text_models.base import AnswersTexts
from megatron_davinci.evaluate.text_models.served import ServedTexts, served_identity
from megatron_davinci.serve.chat_server import ChatOptions, chat_server, servable_directory
from megatron_davinci.serve.environment import DEFAULT_DIRECTORY
from megatron_davinci.weights.paths import find_checkpoint, step_of, weights_fingerprint

_ENGINES = ("transformers", "vllm")
_BESIDE = (".json", ".jinja", ".model", ".txt", ".bin")
_ENDS = 4 << 20  # bytes: of a tokenizer all


@dataclass(frozen=True)
class NamedModel:
    """A model as it was given: a Hugging Face directory, a checkpoint, a run, or an address that ends in /v1."""

    name: str
    given: str

    def fingerprint(self) -> str:
        """Whose answers they are: of all files that decide them; of a server the names that it gives its model, since
        its weights cannot be seen. Raises InputError where nothing is there."""
        if is_address(self.given):
            return served_identity(self.given)
        if not Path(self.given).is_dir():
            raise InputError(f"--model {self.name}: {self.given} is no directory")
        return f"{weights_fingerprint(Path(self.given))} {_files_fingerprint(Path(self.given))}"

    def step(self) -> int | None:
        """The optimizer step of a checkpoint of ours, else None."""
        found = None if is_address(self.given) else find_checkpoint(Path(self.given))
        try:
            return None if found is None else step_of(found)
        except ValueError:
            return None


def _files_fingerprint(directory: Path) -> str:
    """Identity of what stands beside the weights (configuration, tokenizer, chat template), and of weights that are no
    safetensors, by their sizes and ends."""
    checkpoint, digest = find_checkpoint(directory), xxh3_64()
    folder = directory if checkpoint is None else checkpoint / "hf"
    for file in sorted(each for each in folder.glob("*") if each.suffix in _BESIDE):
        size = file.stat().st_size
        with file.open("rb") as opened:
            digest.update(f"{file.name} {size} ".encode() + opened.read(_ENDS))
            opened.seek(max(0, size - _ENDS))
            digest.update(opened.read(_ENDS))
    return digest.hexdigest()


@dataclass(frozen=True)
class Engines:
    """How models are run that are no addresses. `environment`: vLLM's; `concurrency`: requests at a time."""

    engine: str = "transformers"
    environment: str = DEFAULT_DIRECTORY
    concurrency: int = 16

    def engine_of(self, model: NamedModel) -> str:
        """What answers for a model: a server's own engine is not known."""
        return "server" if is_address(model.given) else self.engine

    def check(self) -> None:
        """Raise InputError for an engine that is none."""
        if self.engine not in _ENGINES:
            raise InputError(
                f"--engine {self.engine} is unknown{nearest(self.engine, _ENGINES)}: give transformers or vllm"
            )


@contextmanager
def open_model(model: NamedModel, engines: Engines) -> Iterator[AnswersTexts]:
    """The model while the block runs. Raises InputError and WorkFailed."""
    if is_address(model.given):
        answers: AnswersTexts = ServedTexts(model.given, engines.concurrency)
        try:
            yield answers
        finally:
            answers.close()
    elif engines.engine == "vllm":
        options = ChatOptions(engines.environment, port=0, name=model.name)
        with chat_server(Path(model.given), options) as server:
            answers = ServedTexts(server.url, engines.concurrency, server.name, server.api_key or "")
            try:
                yield answers
            finally:
                answers.close()
    else:
        with _in_process(Path(model.given)) as answers:
            yield answers


@contextmanager
def _in_process(checkpoint: Path) -> Iterator[AnswersTexts]:
    from megatron_davinci.evaluate.text_models.in_process import InProcessTexts

    scratch = Path(tempfile.mkdtemp(prefix="davinci-eval-"))
    try:
        answers = InProcessTexts(servable_directory(checkpoint, scratch))
        try:
            yield answers
        finally:
            answers.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
