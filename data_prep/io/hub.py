"""Models by their name on the Hugging Face hub: OWNER/NAME stands for the files in its cache, fetched where missing.

HF_HOME, HF_TOKEN and HF_HUB_OFFLINE do what they do everywhere.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from data_prep.io.errors import InputError

HUB_TOKENIZER_FILES = ("tokenizer*", "*.tiktoken", "vocab.*", "merges.txt", "special_tokens_map.json", "chat_template*")
HUB_CONFIG_FILES = ("config.json", "generation_config.json")
HUB_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
HUB_MODEL_FILES = (*HUB_CONFIG_FILES, *HUB_TOKENIZER_FILES, *HUB_WEIGHT_FILES)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w.-]+)?")
"""OWNER/NAME, or OWNER/NAME@REVISION: a commit, a branch or a tag."""
_SECONDS = 10  # of waiting for the hub to say which version is the newest


def is_hub_name(text: str | Path) -> bool:
    """Whether a text that names nothing on this disk has the form OWNER/NAME or OWNER/NAME@REVISION."""
    return HUB_NAME.fullmatch(str(text)) is not None and not Path(text).exists()


def found_path(text: str | Path, wanted: Sequence[str] = HUB_MODEL_FILES) -> Path:
    """The path itself, or the directory of the hub's cache that OWNER/NAME stands for. Raises InputError.

    `wanted`: patterns of the files that must be there; others are not fetched.
    """
    return _fetched(str(text), tuple(wanted)) if is_hub_name(text) else Path(text)


def cached_path(text: str | Path, wanted: Sequence[str] = HUB_MODEL_FILES) -> Path:
    """The path itself, or where the cache has OWNER/NAME already; the name where it has not: nothing is fetched."""
    if not is_hub_name(text):
        return Path(text)
    try:
        return _snapshot(str(text), wanted, local_files_only=True)
    except (OSError, ValueError):
        return Path(text)


@cache
def _fetched(name: str, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    here = f"{name} is not on this disk, and as a name on the Hugging Face hub it"
    try:
        return _snapshot(name, wanted)
    except GatedRepoError:
        raise InputError(f"{here} is gated: accept its terms there, and set HF_TOKEN") from None
    except RepositoryNotFoundError:
        raise InputError(f"{here} does not exist, or is private: check the spelling, or set HF_TOKEN") from None
    except HFValidationError:
        raise InputError(f"{name} does not exist") from None
    except (OSError, HfHubHTTPError):
        repository = name.partition("@")[0]
        raise InputError(
            f"{here} cannot be fetched: check the path, or fetch it where there is a network (hf download {repository})"
        ) from None


def _snapshot(name: str, wanted: Sequence[str], local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    found = snapshot_download(
        repository,
        revision=revision or None,
        allow_patterns=list(wanted),
        etag_timeout=_SECONDS,
        local_files_only=local_files_only,
    )
    return Path(found)
