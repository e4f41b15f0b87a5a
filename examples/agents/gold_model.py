"""A model of which one knows what it does: it knows the right patch of some tasks, and says so in tool calls.

It shows what passing rollouts look like where no strong model can be served:
    python examples/agents/gold_model.py envs --port 8001 --knows 1
answers at http://127.0.0.1:8001/v1 as the model "scripted". Each answer depends on the conversation alone.
"""

import argparse
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from data_prep.environments.collection import TaskCollection

NAME = "scripted"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A tool call as a server sends it."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"id": f"call_{name}", "type": "function", "function": function}


def say(content: str, *calls: dict[str, Any]) -> dict[str, Any]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def gold_script(patch: str) -> list[dict[str, Any]]:
    """The replies of somebody who knows the patch: look, apply it, hand it in."""
    look = say("I look at the repository.", call("str_replace_editor", command="view", path="/testbed"))
    write = call("str_replace_editor", command="create", path="/tmp/right.patch", file_text=patch)
    apply = say("I make the change.", write, call("bash", command="git apply /tmp/right.patch && git status --short"))
    return [look, apply, say("The problem is solved.", call("submit"))]


def ignorant_script() -> list[dict[str, Any]]:
    """The replies of somebody who changes the wrong thing."""
    change = call("bash", command="echo 'Sorry.' > NOTES && cat NOTES")
    return [say("I leave a note.", change), say("That is all I can do.", call("submit"))]


class ScriptedModel:
    """Finds the script by the problem that a conversation opens with, and its place by the replies so far."""

    def __init__(self, collection: TaskCollection, knows: int) -> None:
        tasks = list(collection.tasks())
        self._scripts = {task.problem_statement.strip(): gold_script(task.patch) for task in tasks[:knows]}

    def answer(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The next message of a conversation."""
        opening = next(message["content"] for message in messages if message["role"] == "user")
        known = (script for problem, script in self._scripts.items() if problem in opening)
        script = next(known, ignorant_script())
        place = sum(message["role"] == "assistant" for message in messages)
        return script[min(place, len(script) - 1)]


def response_of(message: dict[str, Any], messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A response in OpenAI's protocol; a token is counted for every four characters."""
    prompt, completion = (len(json.dumps(each)) // 4 for each in (messages, message))
    return {
        "id": "scripted",
        "object": "chat.completion",
        "created": 0,
        "model": NAME,
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }


def serve(model: ScriptedModel, port: int) -> ThreadingHTTPServer:
    """A server that is ready to run."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({"object": "list", "data": [{"id": NAME, "object": "model"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._send(response_of(model.answer(asked["messages"]), asked["messages"]))

        def _send(self, held: dict[str, Any]) -> None:
            body = json.dumps(held).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("envs", type=Path)
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--knows", type=int, default=1, help="the first so many tasks, by name")
    given = parser.parse_args()
    server = serve(ScriptedModel(TaskCollection(given.envs), given.knows), given.port)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
