"""A real HTTP server whose model follows a script, and which misbehaves as it is told."""

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gold_model import response_of

Message = dict[str, Any]
Script = Callable[[Sequence[Message]], Message]


@dataclass
class Answer:
    """What is sent: `body` as JSON, or as it is. `cut`: the connection ends in its midst. `after`: seconds."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    after: float = 0.0


Behaviour = Callable[[int, int, dict[str, Any]], "Answer | None"]
"""Number of the reply, of the attempt, and the right response -> what is sent, None for the right one."""


def behaves(place: int, attempt: int, response: dict[str, Any]) -> "Answer | None":
    """A server without fault."""
    return None


@dataclass
class AgentServer:
    """`requests`: what was asked, with its headers."""

    url: str
    requests: list[dict[str, Any]]


@contextmanager
def agent_server(script: Script, behaviour: Behaviour = behaves, port: int = 0) -> Iterator[AgentServer]:
    """A server that runs while the block does."""
    asked: list[dict[str, Any]] = []
    attempts: Counter[str] = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            messages = body["messages"]
            with lock:
                asked.append({**body, "headers": dict(self.headers)})
                key = json.dumps(messages)
                attempt, attempts[key] = attempts[key], attempts[key] + 1
            place = sum(message["role"] == "assistant" for message in messages)
            right = response_of(script(messages), messages)
            self._send(behaviour(place, attempt, right) or Answer(right))

        def _send(self, answer: Answer) -> None:
            time.sleep(answer.after)
            body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer.cut else body)
            if answer.cut:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # the client is gone

    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield AgentServer(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
