"""The server: real HTTP on a free port. `faults` are given before the next proper answer; `log` is who asked what."""

import base64
import json
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from graphql import GraphQLObjectType, GraphQLSchema, build_schema, get_named_type, graphql_sync

from github_server.content import Content


@dataclass
class Fault:
    """An answer that is none: status, headers, body; `hang` seconds without a word come first."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    hang: float = 0.0


@dataclass
class Asked:
    """One request that came."""

    token: str
    method: str
    path: str
    body: bytes


class GitHubServer:
    """Use as a context; `url` is the API's."""

    def __init__(self, content: Content, schema_file: Path) -> None:
        self.content = content
        self.schema: GraphQLSchema = build_schema(schema_file.read_text(), assume_valid=True)
        self.faults: deque[Fault] = deque()
        self.log: list[Asked] = []
        self.after: Callable[[int], None] = lambda count: None
        self.renamed: dict[str, str] = {}
        self.missing_blobs = False
        self._lock = threading.Lock()
        handler = type("Bound", (_Handler,), {"server_content": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> "GitHubServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def note(self, asked: Asked) -> Fault | None:
        with self._lock:
            self.log.append(asked)
            self.after(len(self.log))
            return self.faults.popleft() if self.faults else None

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        root = {"repository": self._repository, "node": self._node}
        result = graphql_sync(
            self.schema,
            body["query"],
            root,
            variable_values=body["variables"],
            field_resolver=_resolve,
            type_resolver=lambda value, info, abstract: value["__typename"],
        )
        errors = [{"message": error.message, "type": "NOT_FOUND"} for error in result.errors or ()]
        return {"data": result.data, **({"errors": errors} if errors else {})}

    def _repository(self, info: Any, owner: str, name: str, **_: Any) -> dict[str, Any] | None:
        wanted = self.renamed.get(f"{owner}/{name}", f"{owner}/{name}")
        if wanted != self.content.name:
            raise LookupError(f"Could not resolve to a Repository with the name '{owner}/{name}'.")
        nodes = self.content.nodes

        def one(info: Any, number: int) -> dict[str, Any]:
            return next(node for node in nodes if node["number"] == number)

        return {"nameWithOwner": self.content.name, "pullRequests": nodes, "pullRequest": one}

    def _node(self, info: Any, id: str) -> dict[str, Any]:
        threads = (thread for node in self.content.nodes for thread in node["reviewThreads"])
        return next(thread for thread in threads if thread["id"] == id)

    def rest(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        parts = path.strip("/").split("/")
        if parts[0] == "search":
            return 200, self._search(query)
        name, rest = "/".join(parts[1:3]), parts[3:]
        if name in self.renamed:
            return 301, f"{self.url}/repos/{self.renamed[name]}{''.join('/' + part for part in rest)}"
        if name != self.content.name:
            return 404, {"message": "Not Found", "documentation_url": "https://docs.github.com/rest"}
        if not rest:
            return 200, self._facts()
        if rest[0] == "pulls":
            return 200, self._commits(int(rest[1]), int(query["page"]), int(query["per_page"]))
        if rest[1] == "trees":
            return 200, self._tree(rest[2])
        if self.missing_blobs:
            return 404, {"message": "Not Found"}
        content = self.content.git("cat-file", "blob", rest[2])
        return 200, {"size": len(content), "encoding": "base64", "content": base64.encodebytes(content).decode()}

    def _facts(self) -> dict[str, Any]:
        given = self.content.repository_payload
        clone_url = f"{self.url}/git/{self.content.name}.git"
        ours = {"full_name": self.content.name, "clone_url": clone_url, "language": "Python", "stargazers_count": 1500}
        return {**given, **ours, "archived": False, "fork": False, "default_branch": "main", "topics": ["plugins"]}

    def _commits(self, number: int, page: int, size: int) -> list[dict[str, Any]]:
        plan = self.content.plans[number]
        head = plan.head or plan.landed
        commits = self.content.git("rev-list", "--reverse", "--topo-order", f"{plan.target}..{head}").decode().split()
        found = []
        for sha in commits[(page - 1) * size : page * size]:
            author, date, message = (
                self.content.git("show", "-s", "--format=%an%x00%aI%x00%B", sha).decode().split("\0")
            )
            parents = [{"sha": parent} for parent in self.content.parents[sha]]
            example = self.content.commit_example
            told = {**example["commit"], "message": message, "author": {"name": author, "email": "a@b.c", "date": date}}
            found.append({**example, "sha": sha, "parents": parents, "commit": told})
        return found

    def _tree(self, sha: str) -> dict[str, Any]:
        entries = []
        for line in self.content.git("ls-tree", "-r", "-t", "-z", sha).decode().split("\0")[:-1]:
            facts, _, path = line.partition("\t")
            mode, kind, blob = facts.split()
            entries.append({"path": path, "mode": mode, "type": kind, "sha": blob})
        return {"sha": sha, "tree": entries, "truncated": False}

    def _search(self, query: dict[str, str]) -> dict[str, Any]:
        """2,500 repositories with 5,000 stars downwards, the last 1,200 of them with the same number."""
        words = query["q"].split()
        low, high = 0, 10**9
        for word in words:
            if word.startswith("stars:0.."):
                high = int(word[9:])
            elif word.startswith("stars:") and word[6:].isdigit():
                low = high = int(word[6:])
        year = next((int(word[8:12]) for word in words if word.startswith("created:")), None)
        found = [r for r in SEARCHED if low <= r["stargazers_count"] <= high and year in (None, r["year"])][:1000]
        page, size = int(query["page"]), int(query["per_page"])
        return {"total_count": len(found), "items": found[(page - 1) * size : page * size]}


SEARCHED = [
    {"full_name": f"o/r{n}", "stargazers_count": 5000 - n if n < 1300 else 3700, "year": 2010 + n % 12}
    for n in range(2500)
]


def _resolve(source: Any, info: Any, **arguments: Any) -> Any:
    """A field of a dictionary; a list where the schema has a connection is cut into the page that is asked for."""
    value = source.get(info.field_name) if isinstance(source, dict) else getattr(source, info.field_name, None)
    if callable(value):
        return value(info, **arguments)
    named = get_named_type(info.return_type)
    if isinstance(value, list) and isinstance(named, GraphQLObjectType) and named.name.endswith("Connection"):
        start = int(arguments.get("after") or 0)
        end = start + arguments["first"]
        page = {"hasNextPage": end < len(value), "endCursor": str(min(end, len(value)))}
        return {"totalCount": len(value), "pageInfo": page, "nodes": value[start:end]}
    return value


class _Handler(BaseHTTPRequestHandler):
    server_content: GitHubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        where = urlsplit(self.path)
        server = self.server_content
        if where.path.startswith("/git/"):
            self._git(where.path.removeprefix("/git"), where.query, body)
            return
        token = (self.headers.get("authorization") or "").removeprefix("token ").removeprefix("Bearer ")
        fault = server.note(Asked(token, self.command, self.path, body))
        if fault is not None:
            time.sleep(fault.hang)
            self._send(fault.status, fault.body, fault.headers)
        elif where.path == "/graphql":
            self._send(200, server.graphql(json.loads(body)), {"x-ratelimit-remaining": "4999"})
        else:
            query = {key: values[0] for key, values in parse_qs(where.query).items()}
            status, answer = server.rest(where.path, query)
            self._send(status, answer, {"location": answer} if status == 301 else {})

    do_GET = do_POST = _handle  # noqa: N815, http.server names them so

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"content-type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _git(self, path: str, query: str, body: bytes) -> None:
        """git's own server as a CGI program."""
        content = self.server_content.content
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(content.clone),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path.removeprefix(f"/{content.name}.git"),
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("content-type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("content-encoding") or "",
            "GIT_PROTOCOL": self.headers.get("git-protocol") or "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=False)
        head, _, answer = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if ": " in line)
        status = int(headers.pop("Status", "200").split()[0])
        self._send(status, answer, headers)
