"""A real HTTP server with OpenAI's protocol, whose answers a function gives."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class TextServer:
    """`requests`: bodies as they came; `context`: what /models says, None where it says nothing."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    context: int | None = None
    name: str = "served"
    finish: str = "stop"
    completion_tokens: int | None = None
    refuses: tuple[int, str] | None = None


@contextmanager
def text_server(answer: Callable[[str], str], **how: Any) -> Iterator[TextServer]:
    """A server that runs while the block does; a token is a word of its prompt."""
    state, lock = TextServer(**how), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            model = {"id": state.name, **({"max_model_len": state.context} if state.context else {})}
            self._send({"data": [model]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                self._send({"count": len(text_of(body).split())}, 404 if state.context is None else 200)
                return
            with lock:
                state.requests.append({**body, "path": self.path})
            if state.refuses is not None:
                self._send({"error": state.refuses[1]}, state.refuses[0])
                return
            text = answer(text_of(body))
            choice = {"message": {"content": text}} if "messages" in body else {"text": text}
            tokens = state.completion_tokens or max(1, len(str(text).split()))
            usage = {"prompt_tokens": 3, "completion_tokens": tokens}
            self._send({"choices": [{**choice, "finish_reason": state.finish}], "usage": usage})

        def _send(self, held: Any, status: int = 200) -> None:
            body = json.dumps(held).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


def text_of(body: dict[str, Any]) -> str:
    """What is asked."""
    return str(body["messages"][0]["content"] if "messages" in body else body["prompt"])


def words(*arguments: Any) -> list[str]:
    """The words of `davinci eval benchmarks`."""
    return [sys.executable, "-m", "megatron_davinci", "eval", "benchmarks", *map(str, arguments)]
