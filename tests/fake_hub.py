"""A hub on this machine: serves folders as huggingface_hub asks for them, and notes what was fetched."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import huggingface_hub
import pytest

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Which repositories there are, and what was fetched of them."""

    folders: dict[str, Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    """Files in the order in which their content was asked for."""
    status: int | None = None
    """What is answered to everything, if anything is."""


@contextmanager
def fake_hub(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Inside, `huggingface_hub` speaks with a hub on this machine and keeps its cache in `cache`."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    Thread(target=server.serve_forever, daemon=True).start()
    use_endpoint(patch, f"http://127.0.0.1:{server.server_port}")
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def use_endpoint(patch: pytest.MonkeyPatch, address: str) -> None:
    """Speak with the hub at `address`."""
    patch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            """Nothing."""

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = urlsplit(self.path).path.strip("/")
            if hub.status is not None:
                return self._send(hub.status, b"{}")
            listed, named = path.removeprefix("api/models/"), path.partition("/resolve/")
            repo = "/".join(listed.split("/")[:2]) if path.startswith("api/") else named[0]
            if repo not in hub.folders:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            folder = hub.folders[repo]
            files = {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_file()}
            if "/tree/" in listed:
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                    for name, file in files.items()
                ]
                return self._send(200, json.dumps(tree).encode())
            if path.startswith("api/"):
                siblings = [{"rfilename": name} for name in files]
                return self._send(200, json.dumps({"id": repo, "sha": SHA, "siblings": siblings}).encode())
            if repo in hub.gated:
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            file = files[named[2].partition("/")[2]]
            if self.command == "GET":
                hub.fetched.append(str(file.relative_to(folder)))
            return self._send(200, file.read_bytes(), {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": SHA})

        def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    return Handler


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
