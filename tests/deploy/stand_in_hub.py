"""What stands in for the Hugging Face hub: the part of its interface over HTTP that models are pushed and read by."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class StandInHub(ThreadingHTTPServer):
    """Repositories in memory.

    Attributes:
        repositories: OWNER/NAME → file → content.
        private: the repositories that were made so.
        broken: the status that every answer has; 0: the right one.
        requests: method and path of each request.
    """

    def __init__(self):
        super().__init__(("localhost", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.broken = 0
        self.requests: list[str] = []

    @property
    def endpoint(self) -> str:
        """The address."""
        return f"http://localhost:{self.server_port}"

    def commit(self, repository: str) -> str:
        """What names the state of a repository."""
        content = repr(sorted(self.repositories[repository].items())).encode()
        return hashlib.sha1(content).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {self.path}")
        if self.server.broken:
            return self._send(self.server.broken, {"error": "broken"})
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}"
            self.server.repositories[repository] = {}
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(repository)
            return self._send(200, {"url": f"{self.server.endpoint}/{repository}"})
        if self.path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        of_models = re.match(r"/api/models/([^/]+/[^/]+)(/.*)?$", self.path)
        of_files = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", self.path)
        repository = (of_models or of_files or ("", ""))[1]  # the client asks for other things, too
        if repository not in self.server.repositories:
            return self._send(404, {"error": "Repository not found"}, code="RepoNotFound")
        files, commit = self.server.repositories[repository], self.server.commit(repository)
        if of_files:
            if of_files[2] not in ("main", commit):
                return self._send(404, {"error": "no revision"}, code="RevisionNotFound")
            if of_files[3] not in files:
                return self._send(404, {"error": "no file"}, code="EntryNotFound", commit=commit)
            return self._send(200, files[of_files[3]], commit=commit)
        action = of_models[2] or ""
        if action.startswith("/preupload"):
            asked = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            return self._send(200, {"files": [file | {"shouldIgnore": False} for file in asked]})
        if action.startswith("/commit"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = self.server.commit(repository)
            return self._send(
                200, {"commitUrl": f"{self.server.endpoint}/{repository}/commit/{commit}", "commitOid": commit}
            )
        about = {"id": repository, "sha": commit, "private": repository in self.server.private}
        return self._send(200, about | {"siblings": [{"rfilename": name} for name in files]})

    def _send(self, status, content, *, code=None, commit=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(content)), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        headers |= {"X-Error-Code": code} if code else {}
        headers |= {"X-Repo-Commit": commit} if commit else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
