"""A small Hub on loopback: what huggingface_hub 2.4, transformers 5 and datasets 5 ask of one, and its ways to fail."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 4096  # bytes from which a file is fetched from another host
API = re.compile(
    r"/api/(models|datasets)/(.+?)(?:/(auth-check|(?:revision|tree|paths-info)/.+))?"
)
RESOLVE = re.compile(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)")


@dataclass
class Repository:
    """A repository of the Hub.

    Attributes:
        files: {commit: {path: content}}.
        branches: {name: commit}.
        gated: only tokens in ``members`` may read it.
        members: tokens that may.
    """

    files: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False
    members: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str | None:
        """Return the commit that a revision means."""
        commit = self.branches.get(revision, revision)
        return commit if commit in self.files else None


@dataclass
class Asked:
    """A request: its method and path, the range that it asks for, and whether a token came along."""

    method: str
    path: str
    range: str | None
    token: bool


class Hub:
    """Repositories, the requests for them, and what goes wrong.

    Attributes:
        url: of the Hub; large files come from another address.
        asked: requests in their order.
        cut: {end of a path: bytes after which its next answer breaks off}.
        broken: every answer is 503.
        silent: there is no answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.asked: list[Asked] = []
        self.cut: dict[str, int] = {}
        self.broken = self.silent = False
        self.url = self.elsewhere = ""

    def add(
        self, kind: str, name: str, *commits: dict[str, bytes], **options: Any
    ) -> list[str]:
        """Add a repository with commits, the last of which is the branch ``main``; returns their names."""
        names = [_digest(f"{name} {n}".encode()) for n in range(len(commits))]
        files = dict(zip(names, commits, strict=True))
        self.repositories[kind, name] = Repository(
            files, {"main": names[-1]}, **options
        )
        return names

    def paths(self, word: str = "") -> list[str]:
        """Return ``METHOD path`` of the requests so far whose path holds a word."""
        return [f"{one.method} {one.path}" for one in self.asked if word in one.path]


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a Hub, and another host for its large files."""
    hub = Hub()
    servers = []
    for handler in (_Handler, _Storage):
        kind = type(handler.__name__, (handler,), {"hub": hub})
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), kind))
    hub.url, hub.elsewhere = (
        f"http://127.0.0.1:{server.server_port}" for server in servers
    )
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield hub
    for server in servers:
        server.shutdown()
        server.server_close()


def files_of(folder: Path) -> dict[str, bytes]:
    """Return {path: content} of a folder's files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class _Answering(BaseHTTPRequestHandler):
    """What both hosts do: note the request, answer with bytes or a part of them, or break off."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def note(self) -> str:
        """Note the request; returns its path without query."""
        path = unquote(urlsplit(self.path).path)
        token = "Authorization" in self.headers
        one = Asked(self.command, path, self.headers.get("Range"), token)
        self.hub.asked.append(one)
        return path

    def send(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Answer; header names have ``_`` for ``-``."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self._cut(content))

    def send_part(self, content: bytes, **headers: str) -> None:
        """Answer with bytes, or with those that ``Range`` asks for."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self.send(200, content, Accept_Ranges="bytes", **headers)
        first, last = int(wanted[1]), min(int(wanted[2] or 1 << 40), len(content) - 1)
        where = f"bytes {first}-{last}/{len(content)}"
        return self.send(206, content[first : last + 1], Content_Range=where, **headers)

    def _cut(self, content: bytes) -> bytes:
        for path, count in list(self.hub.cut.items()):
            if urlsplit(self.path).path.endswith(path):
                del self.hub.cut[path]
                self.close_connection = True
                return content[:count]
        return content


class _Storage(_Answering):
    """The host of large files: it knows them by their sha256, and wants no token."""

    def do_GET(self) -> None:
        wanted = self.note().rpartition("/")[2]
        for repository in self.hub.repositories.values():
            for files in repository.files.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == wanted:
                        return self.send_part(content)
        return self.send(404)


class _Handler(_Answering):
    """The Hub itself."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.answer(parse_qs(body).get("paths", []))

    def answer(self, paths: list[str] | None = None) -> None:
        """Answer what is asked of a repository, or refuse as the Hub does."""
        path = self.note()
        if self.hub.silent:
            self.close_connection = True
            return None
        if self.hub.broken:
            return self.send(503)
        for kind, name, what, rest in _meanings(path):
            repository = self.hub.repositories.get((kind, name))
            if repository:
                return self._of(repository, name, what, rest, paths)
        if _meanings(path):
            return self._refuse(401, "RepoNotFound")
        return self.send(404)

    def _of(
        self,
        repository: Repository,
        name: str,
        what: str,
        rest: str,
        paths: list[str] | None,
    ) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        revision, _, path = rest.partition("/")
        commit = repository.commit(revision or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound")
        closed = repository.gated and token not in repository.members
        files = repository.files[commit]
        if what == "resolve":
            if closed:
                return self._refuse(403 if token else 401, "GatedRepo")
            return self._file(commit, files, path)
        if what == "revision":
            names = [{"rfilename": file} for file in files]
            told = {"id": name, "sha": commit, "siblings": names, "private": False}
            return self._json(told | {"gated": "auto" if repository.gated else False})
        if closed:
            return self._refuse(403 if token else 401, "GatedRepo")
        if what == "auth-check":
            return self._json({})
        if paths is not None:
            return self._json([_entry(one, files) for one in paths if one in files])
        return self._tree(files, path)

    def _tree(self, files: dict[str, bytes], path: str) -> None:
        below = f"{path}/" if path else ""
        found = [file for file in files if file.startswith(below)]
        if not found:
            return self._refuse(404, "EntryNotFound")
        if parse_qs(urlsplit(self.path).query).get("recursive", ["false"]) != ["true"]:
            found = [file for file in found if "/" not in file.removeprefix(below)]
        return self._json([_entry(file, files) for file in found])

    def _file(self, commit: str, files: dict[str, bytes], path: str) -> None:
        headers = {"X_Repo_Commit": commit}
        content = files.get(path)
        if content is None:
            return self._refuse(404, "EntryNotFound", **headers)
        if len(content) < LARGE:
            return self.send_part(content, ETag=f'"{_digest(content)}"', **headers)
        sha256 = hashlib.sha256(content).hexdigest()
        headers |= {"X_Linked_ETag": f'"{sha256}"', "X_Linked_Size": str(len(content))}
        # as the Hub's, it is signed
        where = f"{self.hub.elsewhere}/large/{sha256}?Signature=Zq7signed"
        return self.send(302, Location=where, **headers)

    def _refuse(self, status: int, code: str, **headers: str) -> None:
        self.send(status, X_Error_Code=code, X_Error_Message=code, **headers)

    def _json(self, tree: object) -> None:
        self.send(200, json.dumps(tree).encode(), Content_Type="application/json")


def _meanings(path: str) -> list[tuple[str, str, str, str]]:
    """Return what a path may mean: kind, repository, what is asked of it, revision and path."""
    if found := API.fullmatch(path):
        kind, name, asked = found.groups()
        what, _, rest = (asked or "revision").partition("/")
        return [(kind.removesuffix("s"), name, what, rest)]
    if found := RESOLVE.fullmatch(path):
        kind = "dataset" if found[1] else "model"
        return [(kind, found[2], "resolve", f"{found[3]}/{found[4]}")]
    return []


def _entry(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    content = files[path]
    entry = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": _digest(content),
    }
    if len(content) >= LARGE:
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry
