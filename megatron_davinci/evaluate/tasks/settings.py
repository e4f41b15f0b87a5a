"""How a benchmark's questions are put: one YAML file a task, with a version. Its hash is in every result."""

import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

_NAME = re.compile(r"\{([A-Za-z_]\w*)\}")


class TaskSettings(BaseModel):
    """A settings file. `example` is filled with each of `examples`, `prompt` with a question; both with what stands in
    braces. `message` is the question in a chat. `source` says whose prompt it is."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: PositiveInt
    source: str
    prompt: str
    message: str
    stop: list[str] = Field(min_length=1)
    max_tokens: PositiveInt
    chat_max_tokens: PositiveInt
    intro: str = ""
    example: str = ""
    examples: list[dict[str, str]] = []
    digest: str = ""
    """sha256 of the file, and of the one that it is like."""

    @classmethod
    def of(cls, name: str) -> "TaskSettings":
        """The settings of a task, by its name."""
        return cls.read(Path(str(files("megatron_davinci.evaluate.tasks") / "settings_files" / f"{name}.yaml")))

    @classmethod
    def read(cls, path: Path) -> "TaskSettings":
        """A settings file. One that says `like: NAME` has what it does not say from that file beside it."""
        content = path.read_bytes()
        held: dict[str, Any] = yaml.safe_load(content)
        if "like" in held:
            other = path.with_name(f"{held.pop('like')}.yaml").read_bytes()
            content, held = content + other, {**yaml.safe_load(other), **held}
        return cls.model_validate({**held, "digest": hashlib.sha256(content).hexdigest()})

    def prompt_of(self, values: Mapping[str, str]) -> str:
        """The text that a model goes on with."""
        return "".join([self.intro, *(fill(self.example, each) for each in self.examples), fill(self.prompt, values)])


def fill(template: str, values: Mapping[str, str]) -> str:
    """A template with values in place of {names}; other braces, as LaTeX has them, stay."""
    return _NAME.sub(lambda found: values.get(found[1], found[0]), template)
