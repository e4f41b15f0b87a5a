"""CPU time of the agents' loop for each step, without sandbox and commands: bound 50 ms.

python benchmarks/agent_loop.py [STEPS]: a conversation of 100 steps whose tools answer 5 kB each, with a server
in another process. python benchmarks/agent_loop.py peer [STEPS], where mini-swe-agent is: its own loop with the
same server and the same answers.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STEPS = 100
SAID = "line of output that a command printed\n" * 130  # 5 kB
CALL = {"id": "1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}


class Handler(BaseHTTPRequestHandler):
    """Calls bash, always."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": "I look.", "tool_calls": [{**CALL, "id": f"call_{len(asked)}"}]}
        usage = {"prompt_tokens": len(asked) // 4, "completion_tokens": 20, "total_tokens": len(asked) // 4 + 20}
        choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
        held = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices, "usage": usage}
        body = json.dumps(held).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


def ours(url: str, steps: int) -> float:
    """Seconds of CPU for a step."""
    from data_prep.agents.chat_model import ChatModel, ModelSettings
    from data_prep.agents.journal import RolloutJournal
    from data_prep.agents.loop import AgentLimits, AgentLoop
    from data_prep.agents.model_server import ModelServer
    from data_prep.agents.replies import ToolCall
    from data_prep.agents.tools import ToolBox, ToolResult

    class Silent(ToolBox):
        """Tools that cost nothing."""

        def __init__(self) -> None:
            pass

        def run(self, call: ToolCall) -> ToolResult:
            return ToolResult(SAID)

    model = ChatModel(ModelServer(url), ModelSettings("m"))
    with TemporaryDirectory() as folder:
        journal = RolloutJournal(Path(folder) / "journal.jsonl")
        loop = AgentLoop(model, Silent(), AgentLimits(steps=steps, context_tokens=1 << 30), journal)
        started = time.process_time()
        run = loop.run([{"role": "user", "content": "Work."}])
        spent = time.process_time() - started
    assert len(run.steps) == steps and run.exit_status == "steps", run.exit_reason
    return spent / steps


def peer(url: str, steps: int) -> float:
    """The same of mini-swe-agent's loop with its model of LiteLLM."""
    os.environ |= {"MSWEA_SILENT_STARTUP": "1", "MSWEA_COST_TRACKING": "ignore_errors"}
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.exceptions import LimitsExceeded
    from minisweagent.models.litellm_model import LitellmModel

    class Environment:
        config = None

        def execute(self, action: Any, cwd: str = "", **more: Any) -> dict[str, Any]:
            return {"output": SAID, "returncode": 0, "exception_info": ""}

        def get_template_vars(self, **more: Any) -> dict[str, Any]:
            return more

        def serialize(self) -> dict[str, Any]:
            return {}

    model = LitellmModel(
        model_name="openai/m", cost_tracking="ignore_errors", model_kwargs={"api_base": url, "api_key": "none"}
    )
    agent = DefaultAgent(
        model, Environment(), system_template="Work.", instance_template="{{task}}", step_limit=steps, cost_limit=0
    )
    started = time.process_time()
    with suppress(LimitsExceeded):
        agent.run("Work.")
    spent = time.process_time() - started
    assert agent.n_calls == steps, agent.n_calls
    return spent / steps


def main() -> None:
    """Print the figure beside its bound."""
    words = sys.argv[1:]
    if words[:1] == ["serve"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        print(server.server_address[1], flush=True)
        server.serve_forever()
    theirs = words[:1] == ["peer"]
    steps = int(words[theirs]) if words[theirs:] else STEPS
    server_process = subprocess.Popen([sys.executable, __file__, "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert server_process.stdout is not None
        url = f"http://127.0.0.1:{server_process.stdout.readline().strip()}/v1"
        spent = (peer if theirs else ours)(url, steps)
    finally:
        server_process.kill()
    name = "mini-swe-agent" if theirs else "davinci"
    print(f"{name}: {1000 * spent:.1f} ms of CPU a step over {steps} steps (bound 50)")


if __name__ == "__main__":
    main()
