"""What an agent is told. A version's text never changes: records name the version that they were made with."""

from dataclasses import dataclass
from typing import Any

from data_prep.environments.sandbox.base import TESTBED
from data_prep.environments.task import Task


@dataclass(frozen=True)
class AgentPrompt:
    """`first_message` holds the place of the problem statement as {problem}."""

    version: str
    system: str
    first_message: str

    def messages(self, task: Task) -> list[dict[str, Any]]:
        """The messages that a conversation on a task begins with."""
        problem = task.problem_statement.strip()
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": self.first_message.replace("{problem}", problem)},
        ]


AGENT_PROMPT = AgentPrompt(
    version="1",
    system="You are a software engineer. You work in a repository by calling tools, until the problem is solved.",
    first_message=f"""The repository in {TESTBED} has this problem:

<problem>
{{problem}}
</problem>

Change the source files of the repository so that the problem is solved. Tests are judged as they are in a fresh
checkout: changes of tests and of their configuration are not taken. There is no network.

1. Read the code that belongs to the problem.
2. Write a script that shows the problem, and run it.
3. Change the source.
4. Run the script again, and the tests near the change; think of edge cases.
5. Remove the script, and call submit.

Call a tool in every reply. Say in a few words why, before you call it.""",
)


def malformed_message(reason: str) -> str:
    """What the model is told after a reply without a call that can be run."""
    return (
        f"No tool was run: {reason}. Call one of the tools bash, str_replace_editor and submit, with its arguments as "
        "a JSON object. Call submit when the problem is solved."
    )
