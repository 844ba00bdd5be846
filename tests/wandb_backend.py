"""A small W&B server on loopback: what `wandb sync` and the SDK ask for, and what they told it.

History is kept by offset, as the real server keeps it: a line sent again at its offset replaces itself, a line
beyond is appended. Nothing is checked that the real server does not check.
"""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

API_KEY = "0123456789" * 4
ENTITY = "tester"


@dataclass
class FakeRun:
    """One run as the server holds it."""

    project: str
    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    history: dict[int, str] = field(default_factory=dict)
    """Offset -> line."""
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    output: dict[int, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    upserts: int = 0
    rows_sent: int = 0
    """Lines that came over file_stream, repeats included."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, in the order of its offsets."""
        return [json.loads(self.history[at]) for at in sorted(self.history)]


class Backend:
    """The state of the server; `log` holds each request as (method, path, operation)."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.log: list[tuple[str, str, str]] = []
        self.unknown: list[str] = []
        """Operations that were asked for and that this server does not know."""
        self.bodies: list[dict[str, Any]] = []
        self.refuse: set[str] = set()
        """Run ids whose requests are answered with 401."""
        self.hang: set[str] = set()
        """Run ids whose requests are not answered before the server ends."""
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.url = ""

    def graphql(self, body: dict[str, Any]) -> dict[str, Any]:
        query, variables = body.get("query", ""), body.get("variables") or {}
        name = body.get("operationName") or query.replace("(", " ").replace("{", " ").split()[1]
        self.log.append(("POST", "/graphql", name))
        answer = getattr(self, f"on_{name}", None)
        if answer is None:
            self.unknown.append(name)
            return {"errors": [{"message": f"the test server does not know {name}"}]}
        return {"data": answer(variables)}

    def run_of(self, variables: dict[str, Any]) -> FakeRun:
        name = variables.get("name") or variables.get("run") or variables.get("runName")
        project = variables.get("project") or variables.get("projectName") or "uncategorized"
        return self.runs.setdefault(name, FakeRun(project, name))

    def bucket(self, run: FakeRun) -> dict[str, Any]:
        return {
            "id": base64.b64encode(f"run:{run.name}".encode()).decode(),
            "name": run.name,
            "displayName": run.fields.get("displayName") or run.name,
            "description": None,
            "config": json.dumps(run.config),
            "sweepName": None,
            "historyLineCount": len(run.history),
            "project": {"id": "cA==", "name": run.project, "entity": {"id": "ZQ==", "name": ENTITY}},
        }

    def on_Viewer(self, variables):
        del variables
        return {
            "viewer": {
                "id": "VQ==",
                "entity": ENTITY,
                "username": ENTITY,
                "flags": "{}",
                "teams": {"edges": []},
            }
        }

    def on_ServerInfo(self, variables):
        del variables
        return {
            "serverInfo": {"cliVersionInfo": {"max_cli_version": "0.99.0"}, "latestLocalVersionInfo": None}
        }

    def on_ServerFeaturesQuery(self, variables):
        del variables
        return {"serverInfo": {"features": []}}

    def on_UpsertBucket(self, variables):
        run = self.run_of(variables)
        new = run.upserts == 0
        run.upserts += 1
        run.fields.update({k: v for k, v in variables.items() if v is not None})
        if variables.get("config"):
            run.config = json.loads(variables["config"])
        if variables.get("summaryMetrics"):
            run.summary.update(json.loads(variables["summaryMetrics"]))
        return {"upsertBucket": {"bucket": self.bucket(run), "inserted": new}}

    def on_RunResumeStatus(self, variables):
        name = variables.get("name")
        run = self.runs.get(name)
        if run is None:
            return {"model": {"id": "cA==", "name": variables.get("project"), "entity": None, "bucket": None}}
        rows = run.rows
        return {
            "model": {
                "id": "cA==",
                "name": run.project,
                "entity": {"id": "ZQ==", "name": ENTITY},
                "bucket": {
                    "id": "cg==",
                    "name": run.name,
                    "summaryMetrics": json.dumps(run.summary),
                    "displayName": run.fields.get("displayName") or run.name,
                    "logLineCount": len(run.output),
                    "historyLineCount": len(run.history),
                    "eventsLineCount": 0,
                    "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
                    "eventsTail": "[]",
                    "config": json.dumps(run.config),
                    "tags": run.fields.get("tags") or [],
                    "wandbConfig": json.dumps({"t": 1}),
                },
            }
        }

    def on_CreateRunFiles(self, variables):
        run = self.run_of(variables)
        return {
            "createRunFiles": {
                "runID": run.name,
                "uploadHeaders": [],
                "files": [
                    {"name": name, "uploadUrl": f"{self.url}/upload/{run.name}/{name}"}
                    for name in variables["files"]
                ],
            }
        }

    def on_NotifyScriptableRunAlert(self, variables):
        self.run_of(variables).fields.setdefault("alerts", []).append(variables.get("title"))
        return {"notifyScriptableRunAlert": {"success": True}}

    def file_stream(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[name]
        for kind, chunk in (body.get("files") or {}).items():
            lines, offset = chunk.get("content") or [], chunk.get("offset", 0)
            if kind == "wandb-history.jsonl":
                run.rows_sent += len(lines)
                run.history.update({offset + i: line for i, line in enumerate(lines)})
            elif kind == "wandb-summary.json" and lines:
                run.summary = json.loads(lines[-1])
            elif kind == "output.log":
                run.output.update({offset + i: line for i, line in enumerate(lines)})
        if body.get("complete"):
            run.exit_codes.append(body.get("exitcode"))
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: Backend

    def log_message(self, *args):
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.backend.log.append(("GET", self.path, ""))
        self._send(200, {})

    def do_PUT(self):
        data = self._body()
        _, _, name, path = self.path.split("/", 3)
        with self.backend.lock:
            self.backend.runs[name].files[path] = data
        self._send(200, {})

    def do_POST(self):
        raw = self._body()
        body = json.loads(raw or b"{}")
        backend = self.backend
        text = raw.decode()
        if any(f'"{name}"' in text or f"/{name}/" in self.path for name in backend.hang):
            backend.ended.wait()
        if any(f'"{name}"' in text or f"/{name}/" in self.path for name in backend.refuse):
            self._send(401, {"errors": [{"message": "refused by the test"}]})
            return
        with backend.lock:
            backend.bodies.append(body)
            if self.path.endswith("/graphql"):
                self._send(200, backend.graphql(body))
            else:
                backend.log.append(("POST", self.path, ""))
                self._send(200, backend.file_stream(self.path.split("/")[-2], body))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that goes away is not news."""


@contextmanager
def serve() -> Iterator[Backend]:
    """A running server; its address is `backend.url`."""
    backend = Backend()
    handler = type("Handler", (_Handler,), {"backend": backend})
    with _Server(("127.0.0.1", 0), handler) as server:
        backend.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield backend
        finally:
            backend.ended.set()
            server.shutdown()
            thread.join()


def environment(backend: Backend, home: str) -> dict[str, str]:
    """Environment variables that point W&B's programs to `backend` and keep their files below `home`."""
    return {
        "WANDB_BASE_URL": backend.url,
        "WANDB_API_KEY": API_KEY,
        "HOME": home,
        "WANDB_CONFIG_DIR": f"{home}/config",
        "WANDB_CACHE_DIR": f"{home}/cache",
        "WANDB_DATA_DIR": f"{home}/data",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "false",
        "NO_PROXY": "*",
    }
