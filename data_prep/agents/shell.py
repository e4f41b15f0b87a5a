"""The tool bash: commands one after the other, as in one shell. Directory and exported variables go from one to the
next, through a file in the sandbox; processes end with their command."""

from data_prep.environments.sandbox.base import Result, Session

_STATE = "/tmp/.shell"
_SCRIPT = f"""
command=$(cat); exec < /dev/null
[ -f {_STATE} ] && . {_STATE} 2> /dev/null
keep() {{ export -p; printf "cd -- %q\\n" "$PWD"; }}
trap 'code=$?; keep > {_STATE}.new && mv -f {_STATE}.new {_STATE}; exit $code' EXIT
eval "$command"
"""


def run_in_shell(session: Session, command: str) -> Result:
    """Run a command of any length in bash. Raises SandboxFailed."""
    stdin = command.encode("utf-8", "replace")
    return session.run(["/bin/bash", "-c", _SCRIPT, "bash"], stdin=stdin)


def shell_text(result: Result, seconds: float) -> str:
    """What a command printed and how it ended, for the model."""
    parts = [result.output.rstrip("\n")] if result.output.strip() else []
    if result.killed == "time":
        parts.append(f"[The command was ended: it ran longer than {seconds:g} seconds.]")
    elif result.killed:
        parts.append(f"[The command was ended: it used more {result.killed} than it may.]")
    elif result.returncode:
        parts.append(f"[exit status {result.returncode}]")
    return "\n".join(parts) or "[The command printed nothing.]"
