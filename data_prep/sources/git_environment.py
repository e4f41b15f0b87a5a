"""The environment for git: without the variables by which a hook or a worktree would point it at another repository."""

import os


def environment_without_git() -> dict[str, str]:
    """This process's environment without any GIT_ variable."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
