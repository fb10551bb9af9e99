"""The Hub on loopback: repositories, commits, LFS, tokens and faults, as huggingface_hub sees them over HTTP.

    with running_hub() as hub:
        hub.add_user("alice", "hf_alice")
        HfApi(endpoint=hub.url, token="hf_alice").create_repo("alice/model")

Contents have their real addresses: the git sha1 of a blob, the sha256 of a file of the large file storage (LFS), whose
blob is its pointer. A commit is made whole or not at all, and only on the parent that it names.
"""

import base64
import hashlib
import json
import re
import secrets
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote

import uvicorn
import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

KINDS = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}
LARGE = 10 << 20  # bytes from which a text file goes to LFS
LFS_ENDINGS = (".safetensors", ".bin", ".parquet", ".arrow", ".pt", ".gz", ".zip", ".gguf", ".onnx")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENCES = {"mit", "apache-2.0", "other", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "unknown"}
GIT_ATTRIBUTES = "".join(f"*{e} filter=lfs diff=lfs merge=lfs -text\n" for e in LFS_ENDINGS)


def git_sha1(content: bytes) -> str:
    """The name that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class File:
    """A file of a commit. oid: git sha1 of the content, or of the LFS pointer. lfs: sha256 of the content, or ""."""

    oid: str
    size: int
    lfs: str = ""


@dataclass
class Repo:
    """A repository. commits: sha -> {path: File}. refs: name of a branch or pull request -> sha."""

    kind: str
    name: str
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    authors: dict[str, str] = field(default_factory=dict)  # of pull requests

    @property
    def owner(self) -> str:
        return self.name.split("/")[0] if "/" in self.name else ""

    def commit_of(self, revision: str) -> str | None:
        if revision in self.refs:
            return self.refs[revision]
        return revision if revision in self.commits else None

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.commits[self.commit_of(revision)]

    def add(self, ref: str, files: dict[str, File], message: str) -> str:
        """Make a commit, and return its sha1."""
        parent = self.refs.get(ref) or ""
        tree = "".join(f"{path}\0{file.oid}\n" for path, file in sorted(files.items()))
        text = f"tree {tree}parent {parent}\nnumber {len(self.commits)}\n\n{message}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.refs[ref] = files, message, sha
        return sha


@dataclass
class Fault:
    """What goes wrong at the next `times` requests whose "METHOD /path" matches a pattern.

    what: a status such as 503; "cut": half of the body; "etag": a wrong ETag; "slow": it takes `seconds`; "landed": the
    request is done, and answered with 500; "drop": the connection closes without an answer.
    """

    pattern: str
    what: int | str
    times: int = 1
    seconds: float = 0.5
    headers: dict = field(default_factory=dict)
    skip: int = 0


class Refused(Exception):
    """The answer to a request that cannot be done."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        headers = {"X-Error-Code": code} if code else {}
        if message:
            headers["X-Error-Message"] = message
        self.response = JSONResponse({"error": message or code}, status, headers)


class HubDouble:
    """The state of the Hub, and the ASGI app that serves it."""

    def __init__(self):
        self.lock = threading.RLock()
        self.url = ""
        self.prefix = ""  # path below which the Hub is, as behind a mirror of a company
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.users: dict[str, dict] = {}  # token -> what whoami says
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}  # git sha1 -> content
        self.large: dict[str, bytes] = {}  # sha256 -> content
        self.uploads: dict[str, str] = {}  # signature -> the sha256 that may be uploaded with it
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD /path" of all, in order
        self.secrets_seen: list[str] = []  # Authorization headers

    # ---- for tests ----

    def add_user(self, name: str, token: str, *, role: str = "write", orgs: tuple = ()) -> None:
        self.users[token] = {
            "type": "user",
            "name": name,
            "orgs": [{"name": org, "roleInOrg": "write"} for org in orgs],
            "auth": {"type": "access_token", "accessToken": {"role": role}},
        }

    def fail(self, pattern: str, what: int | str, times: int = 1, **options) -> None:
        self.faults.append(Fault(pattern, what, times, **options))

    def put(
        self, name: str, files: dict[str, bytes], *, kind: str = "models", private=False
    ) -> str:
        """Make a repository with files, or a commit that adds them, and return the commit."""
        repo = self.repos.setdefault((kind, name), Repo(kind, name, private))
        kept = dict(repo.files()) if repo.refs else {}
        for path, content in files.items():
            kept[path] = self.store(path, content)
        return repo.add("main", kept, "put")

    def put_folder(self, name: str, folder, *, kind: str = "models") -> str:
        files = {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                files[path.relative_to(folder).as_posix()] = path.read_bytes()
        return self.put(name, files, kind=kind)

    def repo(self, name: str, kind: str = "models") -> Repo:
        return self.repos[kind, name]

    def content(self, file: File) -> bytes:
        return self.large[file.lfs] if file.lfs else self.blobs[file.oid]

    def contents(self, name: str, kind: str = "models", revision: str = "main") -> dict[str, bytes]:
        files = self.repo(name, kind).files(revision)
        return {path: self.content(file) for path, file in files.items()}

    def store(self, path: str, content: bytes) -> File:
        if self.upload_mode(path, content[:512], len(content)) == "lfs":
            sha = hashlib.sha256(content).hexdigest()
            self.large[sha] = content
            return self.pointer(sha, len(content))
        oid = git_sha1(content)
        self.blobs[oid] = content
        return File(oid, len(content))

    @staticmethod
    def pointer(sha: str, size: int) -> File:
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha}\nsize {size}\n"
        return File(git_sha1(text.encode()), size, sha)

    @staticmethod
    def upload_mode(path: str, sample: bytes, size: int) -> str:
        is_large = path.endswith(LFS_ENDINGS) or b"\0" in sample or size > LARGE
        return "lfs" if is_large else "regular"

    # ---- HTTP ----

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        body = await request.body()
        path = scope["raw_path"].decode()
        if not path.startswith(self.prefix):
            path = f"/outside{path}"
        path = path.removeprefix(self.prefix)
        line = f"{request.method} {path}"
        query = parse_qs(scope["query_string"].decode())
        authorization = request.headers.get("authorization", "")
        with self.lock:
            self.requests.append(line)
            self.secrets_seen.append(authorization)
            fault = self.next_fault(line)
        what = fault.what if fault else None
        if what == "slow":
            time.sleep(fault.seconds)  # in the server's own thread: one request at a time
        if what == "drop":
            return
        if isinstance(what, int):
            response = JSONResponse({"error": f"fault {what}"}, what, fault.headers)
        else:
            try:
                with self.lock:
                    response = self.answer(request.method, path, query, request.headers, body)
            except Refused as refused:
                response = refused.response
        if what == "landed":
            response = JSONResponse({"error": "fault 500"}, 500)
        if what == "etag":
            for name in ("etag", "x-linked-etag"):
                if name in response.headers:
                    response.headers[name] = '"' + "0" * 40 + '"'
        if what == "cut":
            response.body = response.body[: len(response.body) // 2]  # Content-Length stays
        await response(scope, receive, send)

    def next_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, line):
                if fault.skip:
                    fault.skip -= 1
                    continue
                fault.times -= 1
                return fault
        return None

    def answer(self, method: str, path: str, query: dict, headers, body: bytes) -> Response:
        token = headers.get("authorization", "").removeprefix("Bearer ")
        user = self.users.get(token)
        if token and user is None:
            raise Refused(401, message="Invalid user token.")
        for allowed, pattern, handler in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in allowed:
                parts = {key: unquote(value or "") for key, value in match.groupdict().items()}
                call = Call(method, parts, query, headers, body, user)
                return handler(self, call)
        raise Refused(404, message=f"no route for {method} {path}")

    # ---- who may do what ----

    def readable(self, call: "Call") -> Repo:
        """The repository of a request. A private one does not exist for others."""
        repo = self.repos.get((call.kind, call.parts["id"]))
        if repo is None or (repo.private and not self.is_owner(repo, call.user)):
            # The Hub tells a stranger no more than this.
            raise Refused(404 if call.user else 401, "RepoNotFound", "Repository not found")
        return repo

    def writable(self, call: "Call") -> Repo:
        if call.user is None:
            raise Refused(401, message="Invalid username or password.")
        repo = self.readable(call)
        if not self.is_owner(repo, call.user) or self.role(call.user) == "read":
            raise Refused(403, message="You don't have the rights to write to this repository")
        return repo

    @staticmethod
    def role(user: dict) -> str:
        return user["auth"]["accessToken"]["role"]

    @staticmethod
    def namespaces(user: dict | None) -> set[str]:
        if user is None:
            return set()
        return {user["name"]} | {org["name"] for org in user["orgs"]}

    def is_owner(self, repo: Repo, user: dict | None) -> bool:
        return repo.owner in self.namespaces(user)

    def revision(self, repo: Repo, call: "Call") -> str:
        commit = repo.commit_of(call.parts.get("rev") or "main")
        if commit is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return commit

    # ---- requests ----

    def whoami(self, call: "Call") -> Response:
        if call.user is None:
            raise Refused(401, message="Invalid username or password.")
        return JSONResponse(call.user)

    def create(self, call: "Call") -> Response:
        if call.user is None:
            raise Refused(401, message="Invalid username or password.")
        asked = call.json
        owner = asked.get("organization") or call.user["name"]
        kind = (asked.get("type") or "model") + "s"
        name = f"{owner}/{asked['name']}"
        if owner not in self.namespaces(call.user) or self.role(call.user) == "read":
            raise Refused(403, message="You don't have the rights to create a repository here")
        url = f"{self.url}/{KINDS[kind]}{name}"
        if (kind, name) in self.repos:
            return JSONResponse({"error": "You already created this repo", "url": url}, 409)
        if kind == "spaces" and not asked.get("sdk"):
            raise Refused(400, message="a Space needs an sdk")
        is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
        repo = Repo(kind, name, is_private)
        repo.add(
            "main",
            {".gitattributes": self.store(".gitattributes", GIT_ATTRIBUTES.encode())},
            "initial commit",
        )
        self.repos[kind, name] = repo
        return JSONResponse({"url": url, "name": name, "id": name})

    def delete(self, call: "Call") -> Response:
        asked = call.json
        call.parts |= {"kind": (asked.get("type") or "model") + "s"}
        call.parts["id"] = f"{asked.get('organization') or call.user['name']}/{asked['name']}"
        repo = self.writable(call)
        del self.repos[repo.kind, repo.name]
        return Response(status_code=200)

    def validate_yaml(self, call: "Call") -> Response:
        problems = card_problems(call.json.get("content", ""))
        answer = {"errors": [{"message": problem} for problem in problems], "warnings": []}
        return JSONResponse(answer, 400 if problems else 200)

    def info(self, call: "Call") -> Response:
        repo = self.readable(call)
        commit = self.revision(repo, call)
        siblings = []
        for path, file in sorted(repo.commits[commit].items()):
            sibling = {"rfilename": path}
            if "blobs" in call.query:
                sibling |= {"blobId": file.oid, "size": file.size}
                if file.lfs:
                    sibling["lfs"] = {"sha256": file.lfs, "size": file.size, "pointerSize": 130}
            siblings.append(sibling)
        answer = {
            "_id": "0", "id": repo.name, "modelId": repo.name, "author": repo.owner, "sha": commit,
            "private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0,
            "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": siblings,
        }  # fmt: skip
        return JSONResponse(answer)

    def tree(self, call: "Call") -> Response:
        repo = self.readable(call)
        files = repo.commits[self.revision(repo, call)]
        folder = (call.parts.get("path") or "").strip("/")
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise Refused(404, "EntryNotFound", f"{folder} does not exist")
        entries: dict[str, dict] = {}
        for path, file in sorted(inside.items()):
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                above = prefix + "/".join(parts[:depth])
                entries[above] = {
                    "type": "directory",
                    "oid": git_sha1(above.encode()),
                    "size": 0,
                    "path": above,
                }
            entries[path] = file_entry(path, file)
        if call.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            entries = {
                path: entry for path, entry in entries.items() if "/" not in path[len(prefix) :]
            }
        return JSONResponse(list(entries.values()))

    def paths_info(self, call: "Call") -> Response:
        repo = self.readable(call)
        files = repo.commits[self.revision(repo, call)]
        asked = call.json if call.is_json else parse_qs(call.body.decode())
        paths = asked.get("paths", [])
        entries = []
        for path in [paths] if isinstance(paths, str) else paths:
            if path in files:
                entries.append(file_entry(path, files[path]))
            elif any(name.startswith(f"{path}/") for name in files):
                entries.append(
                    {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}
                )
        return JSONResponse(entries)

    def refs(self, call: "Call") -> Response:
        repo = self.readable(call)
        branches, pulls = [], []
        for name, sha in repo.refs.items():
            ref = name if name.startswith("refs/") else f"refs/heads/{name}"
            (pulls if "/pr/" in ref else branches).append(
                {"name": name, "ref": ref, "targetCommit": sha}
            )
        return JSONResponse(
            {"branches": branches, "tags": [], "converts": [], "pullRequests": pulls}
        )

    def discussions(self, call: "Call") -> Response:
        """The open pull requests of a user."""
        repo = self.readable(call)
        author = call.query["author"][0]
        requests = []
        for ref, name in repo.authors.items():
            if name == author:
                requests.append(
                    {
                        "title": "",
                        "num": int(ref.removeprefix("refs/pr/")),
                        "author": {"name": name},
                        "createdAt": "2026-01-01T00:00:00.000Z",
                        "status": "open",
                        "isPullRequest": True,
                        "repo": {"name": repo.name, "type": repo.kind.removesuffix("s")},
                    }
                )
        return JSONResponse({"count": len(requests), "start": 0, "discussions": requests})

    def branch(self, call: "Call") -> Response:
        repo = self.writable(call)
        name = call.parts["rev"]
        if name in repo.refs:
            raise Refused(409, message="Reference already exists")
        start = repo.commit_of((call.json or {}).get("startingPoint") or "main")
        if start is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        repo.refs[name] = start
        return Response(status_code=201)

    def preupload(self, call: "Call") -> Response:
        repo = self.writable(call)
        files = repo.commits[self.revision(repo, call)]
        answers = []
        for file in call.json["files"]:
            mode = self.upload_mode(file["path"], base64.b64decode(file["sample"]), file["size"])
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            known = files.get(file["path"])
            if known is not None:
                answer["oid"] = known.lfs or known.oid
            answers.append(answer)
        return JSONResponse({"files": answers, "commitOid": repo.refs["main"]})

    def lfs_batch(self, call: "Call") -> Response:
        self.writable(call)
        objects = []
        for asked in call.json["objects"]:
            answer = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.large:
                signature = secrets.token_hex(8)
                self.uploads[signature] = asked["oid"]
                answer["actions"] = {
                    "upload": {
                        "href": f"{self.url}/lfs-storage/{asked['oid']}?signature={signature}"
                    },
                    "verify": {"href": f"{self.url}/lfs-verify"},
                }
            objects.append(answer)
        return JSONResponse({"transfer": "basic", "objects": objects})

    def lfs_put(self, call: "Call") -> Response:
        signature = call.query.get("signature", [""])[0]
        if self.uploads.get(signature) != call.parts["oid"]:
            raise Refused(403, message="bad signature")
        if hashlib.sha256(call.body).hexdigest() != call.parts["oid"]:
            raise Refused(400, message="the content has another sha256")
        self.large[call.parts["oid"]] = call.body
        return Response(status_code=200)

    def lfs_verify(self, call: "Call") -> Response:
        content = self.large.get(call.json["oid"])
        if content is None or len(content) != call.json["size"]:
            raise Refused(404, message="the object was not uploaded")
        return Response(status_code=200)

    def commit(self, call: "Call") -> Response:
        """A commit of NDJSON lines. Nothing changes unless all of it is good."""
        repo = self.writable(call)
        branch = call.parts["rev"]
        if branch not in repo.refs:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        lines = [json.loads(line) for line in call.body.splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        as_pull = call.query.get("create_pr", ["0"])[0] == "1"
        parent = header.get("parentCommit")
        if parent and not as_pull and not repo.refs[branch].startswith(parent):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repo.files(branch))
        for line in lines:
            self.apply(files, line["key"], line["value"])
        answer = {}
        if as_pull:
            number = 1 + sum("/pr/" in name for name in repo.refs)
            target = f"refs/pr/{number}"
            repo.refs[target] = repo.refs[branch]
            repo.authors[target] = call.user["name"]
            answer["pullRequestUrl"] = (
                f"{self.url}/{KINDS[repo.kind]}{repo.name}/discussions/{number}"
            )
            branch = target
        sha = repo.add(branch, files, header["summary"])
        answer |= {
            "success": True,
            "commitOid": sha,
            "commitUrl": f"{self.url}/{KINDS[repo.kind]}{repo.name}/commit/{sha}",
            "hookOutput": "",
        }
        return JSONResponse(answer)

    def apply(self, files: dict[str, File], key: str, value: dict) -> None:
        if key == "file":
            content = base64.b64decode(value["content"])
            if value["path"] == "README.md" and card_problems(content.decode()):
                raise Refused(400, message="Invalid metadata in README.md")
            oid = git_sha1(content)
            self.blobs[oid] = content
            files[value["path"]] = File(oid, len(content))
        elif key == "lfsFile":
            content = self.large.get(value["oid"])
            if content is None:
                raise Refused(400, message=f"the LFS object {value['oid']} was not uploaded")
            files[value["path"]] = self.pointer(value["oid"], len(content))
        elif key == "deletedFile":
            if value["path"] not in files:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            del files[value["path"]]

    def resolve(self, call: "Call") -> Response:
        repo = self.readable(call)
        commit = self.revision(repo, call)
        file = repo.commits[commit].get(call.parts["path"])
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if file is None:
            refused = Refused(404, "EntryNotFound", "Entry not found")
            refused.response.headers["X-Repo-Commit"] = commit
            raise refused
        if file.lfs:
            # The client takes size and ETag from here, and follows to another host without its token.
            headers |= {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.lfs}"'}
            headers["Location"] = f"{self.url.replace('127.0.0.1', 'localhost')}/cdn/{file.lfs}"
            return Response(b"", 302, headers)
        headers["ETag"] = f'"{file.oid}"'
        return ranged(self.blobs[file.oid], call, headers)

    def cdn(self, call: "Call") -> Response:
        content = self.large[call.parts["oid"]]
        return ranged(content, call, {"ETag": f'"{call.parts["oid"]}"', "Accept-Ranges": "bytes"})


@dataclass
class Call:
    """A request: what the pattern of its route names, and who sends it."""

    method: str
    parts: dict[str, str]
    query: dict
    headers: dict
    body: bytes
    user: dict | None

    @property
    def kind(self) -> str:
        return self.parts.get("kind") or "models"

    @property
    def is_json(self) -> bool:
        return "json" in self.headers.get("content-type", "")

    @property
    def json(self):
        return json.loads(self.body) if self.body else None


def file_entry(path: str, file: File) -> dict:
    entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
    if file.lfs:
        entry["lfs"] = {"oid": file.lfs, "size": file.size, "pointerSize": 130}
    return entry


def ranged(content: bytes, call: Call, headers: dict) -> Response:
    """The content, or the part of it that the header Range asks for."""
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", ""))
    if not wanted:
        return Response(content, 200, headers)
    start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
    if start >= len(content):
        return Response(b"", 416, headers | {"Content-Range": f"bytes */{len(content)}"})
    end = min(end, len(content) - 1)
    headers |= {"Content-Range": f"bytes {start}-{end}/{len(content)}"}
    return Response(content[start : end + 1], 206, headers)


def card_problems(text: str) -> list[str]:
    """What the Hub refuses in the metadata of a README.md."""
    front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    if front is None:
        return []
    try:
        content = yaml.safe_load(front[1]) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(content, dict):
        return ["the metadata must be a map"]
    return [*name_problems(content), *result_problems(content)]


def name_problems(content: dict) -> list[str]:
    problems = []
    licence = content.get("license")
    if licence is not None and licence not in LICENCES:
        problems.append(f'"license" must be one of {sorted(LICENCES)}')
    for key in ("base_model", "datasets"):
        names = content.get(key) or []
        for name in [names] if isinstance(names, str) else names:
            if not HUB_ID.fullmatch(str(name)):
                problems.append(f'"{key}" with value "{name}" is not valid: use an id')
    for key in ("tags", "language"):
        values = content.get(key) or []
        for value in [values] if isinstance(values, str) else values:
            if not isinstance(value, str):
                problems.append(f'"{key}" must be a string')
    return problems


def result_problems(content: dict) -> list[str]:
    problems = []
    for entry in content.get("model-index") or []:
        for result in entry.get("results", []):
            if not {"task", "dataset", "metrics"} <= result.keys():
                problems.append("a result of model-index needs task, dataset and metrics")
    return problems


ID = r"(?P<id>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{ID}"
REPO = rf"/(?:(?P<kind>datasets|spaces)/)?{ID}"
ROUTES = (
    (("GET", "HEAD"), r"/api/whoami-v2", HubDouble.whoami),
    (("POST",), r"/api/repos/create", HubDouble.create),
    (("DELETE",), r"/api/repos/delete", HubDouble.delete),
    (("POST",), r"/api/validate-yaml", HubDouble.validate_yaml),
    (("POST",), rf"{API}/preupload/(?P<rev>[^/]+)", HubDouble.preupload),
    (("POST",), rf"{API}/commit/(?P<rev>[^/]+)", HubDouble.commit),
    (("POST",), rf"{API}/branch/(?P<rev>[^/]+)", HubDouble.branch),
    (("POST",), rf"{API}/paths-info/(?P<rev>[^/]+)", HubDouble.paths_info),
    (("GET", "HEAD"), rf"{API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.*))?", HubDouble.tree),
    (("GET", "HEAD"), rf"{API}/refs", HubDouble.refs),
    (("GET", "HEAD"), rf"{API}/discussions", HubDouble.discussions),
    (("GET", "HEAD"), rf"{API}/revision/(?P<rev>[^/]+)", HubDouble.info),
    (("GET", "HEAD"), API, HubDouble.info),
    (("POST",), rf"{REPO}\.git/info/lfs/objects/batch", HubDouble.lfs_batch),
    (("PUT",), r"/lfs-storage/(?P<oid>[0-9a-f]{64})", HubDouble.lfs_put),
    (("POST",), r"/lfs-verify", HubDouble.lfs_verify),
    (("GET", "HEAD"), r"/cdn/(?P<oid>[0-9a-f]{64})", HubDouble.cdn),
    (("GET", "HEAD"), rf"{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", HubDouble.resolve),
)


@contextmanager
def running_hub():
    """A HubDouble that listens on a free port of loopback, in a thread."""
    hub = HubDouble()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(hub, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listener.close()
