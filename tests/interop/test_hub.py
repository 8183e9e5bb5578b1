import hashlib
import http.server
import json
import threading
import urllib.parse

import huggingface_hub
import pytest
from huggingface_hub import constants

import clara_jax
from clara_jax.errors import UserError
from clara_jax.exchange import export_model, import_model
from clara_jax.interop import base, hub

# --- A stand-in for the hub on this machine: what its client asks for, and no more ---------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BRANCHES = {"main": COMMIT, "v1": "1" * 40}

# Status and the header by which the client tells an error's kind.
ERRORS = {"gated": (403, "GatedRepo"), "missing": (404, "RepoNotFound"), "down": (503, "")}


class Hub(http.server.ThreadingHTTPServer):
    """Serves repositories from memory.

    Args:
        repositories: files by path, by `owner/name` or, for revisions, `owner/name@revision`; a
            string is a key of ERRORS.

    Attributes:
        url: what to set as endpoint.
        asked: paths that were asked for.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes] | str]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()

    def fetched(self) -> list[str]:
        """Paths of the files that were downloaded."""
        return sorted(path.split("/resolve/")[1].split("/", 1)[1] for path in self.asked
                      if "/resolve/" in path)  # fmt: skip


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.server.asked.append(urllib.parse.unquote(self.path.split("?")[0]))
        self.answer()

    def answer(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        if api:
            parts = parts[2:]
        if len(parts) < 3 or parts[2] not in ("tree", "revision", "resolve"):
            parts = [*parts[:2], "revision", "main"]
        (owner, name, action, revision), rest = parts[:4], "/".join(parts[4:])
        commit = BRANCHES.get(revision, revision if revision in BRANCHES.values() else None)
        repo = f"{owner}/{name}"
        files = self.server.repositories.get(repo, "missing")
        if commit == BRANCHES["v1"]:
            files = self.server.repositories.get(f"{repo}@v1", files)
        if isinstance(files, str):
            status, code = ERRORS[files]
            return self.send(
                status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"is {files}"}
            )
        if commit is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if action == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self.send_json({"id": repo, "sha": commit, "siblings": siblings})
        if action == "tree":
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": etag(data)}
                for file, data in files.items()
            ]
            return self.send_json(entries)
        if rest not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = files[rest]
        return self.send(200, data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": commit})

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status, data, headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


# --- Repositories of the hub ---------------------------------------------------------------------

RELEASE = {"config.json": b"{}", "adapters.pth": b"adapters", "modeling_clara.py": b"print()"}
RELEASE |= {"decoder_first_last_layers.pth": b"layers", "tokenizer.json": b"[]"}
PEFT = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights", "README.md": b"#"}


def under(folder, files):
    return {f"{folder}/{name}": data for name, data in files.items()}


REPOSITORIES = {
    "apple/clara": {"README.md": b"#", **under("rate-16", RELEASE), **under("rate-128", RELEASE)},
    "naver/pisco": RELEASE | {"consolidated.safetensors": b"original"},
    "naver/pisco@v1": RELEASE | {"adapters.pth": b"first"},
    "org/adapters": {**PEFT, **under("deep/er", PEFT), **under("other", {"a.safetensors": b""})},
    "org/empty": {"README.md": b"#"},
    "org/gated": "gated",
    "org/down": "down",
    "org/base": {
        "config.json": json.dumps({"model_type": "bert"}).encode(),
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"other weights",
        "original/consolidated.safetensors": b"original",
        "tokenizer.model": b"pieces",
    },
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """The client asks a server of this machine; it has no cache yet, and the folder is empty."""
    server = Hub(REPOSITORIES)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    point_at(server.url, tmp_path, monkeypatch)
    yield server
    server.close()


def point_at(url, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def no_network(monkeypatch):
    for name in ("snapshot_download", "HfApi"):
        monkeypatch.setattr(huggingface_hub, name, lambda *a, **k: pytest.fail("asks the network"))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def message(name):
    with pytest.raises(UserError) as error:
        hub.resolve_source(name)
    assert "\n" not in str(error.value)
    return str(error.value)


FETCHED = ["adapters.pth", "config.json", "decoder_first_last_layers.pth", "tokenizer.json"]


def test_root_of_a_repository(stand_in):
    folder = hub.resolve_source("naver/pisco")
    assert names(folder) == stand_in.fetched() == FETCHED
    assert (folder / "adapters.pth").read_bytes() == b"adapters"


def test_revision(stand_in):
    folder = hub.resolve_source("naver/pisco@v1")
    assert (folder / "adapters.pth").read_bytes() == b"first"
    assert "naver/pisco" in message("naver/pisco@v2")


@pytest.mark.parametrize("name", ["apple/clara/rate-16", "apple/clara@main/rate-16/"])
def test_only_the_folder_asked_for_is_fetched(stand_in, name):
    folder = hub.resolve_source(name)
    assert folder.name == "rate-16"
    assert names(folder) == FETCHED
    assert stand_in.fetched() == [f"rate-16/{file}" for file in FETCHED]


def test_adapters_of_peft(stand_in):
    folder = hub.resolve_source("org/adapters")
    assert names(folder) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (hub.resolve_source("org/adapters/deep/er") / "adapter_config.json").is_file()


def test_folders_to_choose_from_are_listed(stand_in):
    assert message("apple/clara") == (
        "apple/clara on the hub: holds no checkpoint itself; checkpoints: "
        "apple/clara/rate-128, apple/clara/rate-16"
    )
    assert message("apple/clara@main/rate-32") == (
        "apple/clara@main on the hub: has no folder 'rate-32'; checkpoints: "
        "apple/clara@main/rate-128, apple/clara@main/rate-16"
    )
    assert message("org/adapters/other") == (
        "org/adapters/other on the hub: holds no checkpoint itself; checkpoints: "
        "org/adapters, org/adapters/deep/er"
    )
    assert message("org/empty").endswith("itself; no folder of it is a checkpoint")
    assert not [file for file in stand_in.fetched() if file.endswith(".pth")]


def test_what_was_fetched_needs_no_network(stand_in, tmp_path, monkeypatch):
    folder = hub.resolve_source("apple/clara/rate-16")
    stand_in.close()
    assert hub.resolve_source("apple/clara/rate-16") == folder
    assert "cannot download apple/clara from" in message("apple/clara/rate-128")


def test_no_network(stand_in):
    stand_in.close()
    assert "cannot download naver/pisco from the Hugging Face hub: " in message("naver/pisco")


def test_no_access(stand_in):
    assert "cannot download org/gated from the Hugging Face hub: " in message("org/gated")
    assert "gated" in message("org/gated")
    assert "404" in message("org/nothing/rate-16")
    assert "cannot download org/down from" in message("org/down")


def test_base_of_the_hub(stand_in):
    with pytest.raises(UserError, match="model_type 'bert' is not supported"):
        base.read_config("org/base")
    found = base.resolve("org/base")
    assert names(found.path) == ["config.json", "model.safetensors", "tokenizer.model"]
    for name, reason in (("org/gated", "gated"), ("org/nothing", "404")):
        with pytest.raises(UserError, match=f"cannot download {name} from .*{reason}") as error:
            base.resolve(name)
        assert "\n" not in str(error.value)
    stand_in.close()
    assert base.resolve("org/base") == found
    with pytest.raises(UserError, match="cannot download naver/pisco from"):
        base.resolve("naver/pisco")


# --- Names of this machine -----------------------------------------------------------------------


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def test_local_folders_are_as_they_are(tmp_path, monkeypatch, no_network):
    fill(tmp_path, REPOSITORIES["apple/clara"] | under("work/checkpoints/10", {"data": b""}))
    fill(tmp_path / "work", {"config.json": b"{}"} | under("exported", RELEASE))
    monkeypatch.chdir(tmp_path.parent)
    for name in (tmp_path / "rate-16", f"{tmp_path.name}/rate-128", str(tmp_path / "work")):
        assert hub.resolve_source(name).samefile(name)
    (tmp_path / "new").mkdir()
    assert hub.resolve_source(tmp_path / "new") == tmp_path / "new"  # whoever reads it will tell


def test_local_folders_to_choose_from_are_listed(tmp_path, monkeypatch, no_network):
    fill(tmp_path / "some/clara", REPOSITORIES["apple/clara"])
    monkeypatch.chdir(tmp_path)
    assert message("some/clara") == (
        "some/clara: holds no checkpoint itself; checkpoints: "
        "some/clara/rate-128, some/clara/rate-16"
    )
    assert message("some/clara/rate-32").startswith(
        "some/clara: has no folder 'rate-32'; checkpoints: some/clara/rate-128, "
    )


@pytest.mark.parametrize(
    "name",
    [
        "", "name", "/absolute/path", "./owner/name", "../owner/name", "gs://bucket/folder",
        "owner/name/../x", "owner/model.gguf", "owner/name@", "own er/name", "owner//name",
    ],
)  # fmt: skip
def test_other_names_are_refused_without_the_network(name, no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message(name) == f"{name!r} is neither a folder nor a hub id (owner/name)"


def test_files_are_refused(tmp_path, monkeypatch, no_network):
    fill(tmp_path, {"owner/name": b""})
    monkeypatch.chdir(tmp_path)
    assert message("owner/name") == "'owner/name' is neither a folder nor a hub id (owner/name)"


def test_a_checkpoint_and_its_base_are_imported_by_their_hub_ids(
    release, stand_in, tmp_path, capsys
):
    """From names alone to an answer; of the checkpoint only the folder that was asked for."""

    def files(folder):
        return {file.name: file.read_bytes() for file in (release / folder).iterdir()}

    stand_in.repositories = {
        "someone/clara": {
            **under("compression-16", files("ckpt_mistral_stage2")),
            **under("compression-4", files("ckpt_mistral_stage1")),
        },
        "someone/base": files("base_mistral"),
    }
    with pytest.raises(UserError, match="checkpoints: someone/clara/compression-16, someone/clara"):
        import_model.run("someone/clara", str(tmp_path / "w"), "someone/base")
    assert not (tmp_path / "w").exists()
    import_model.run("someone/clara/compression-16", str(tmp_path / "w"), "someone/base")
    assert "base      someone/base" in capsys.readouterr().out
    assert not [path for path in stand_in.fetched() if path.startswith("compression-4/")]
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["model"]["base"] == "someone/base"
    clara = clara_jax.load(tmp_path / "w")
    assert clara.ask(["who ?"], [["a man", "a dog"]], max_new_tokens=4)[0].text
    export_model.run(str(tmp_path / "w"), "release", str(tmp_path / "x"))
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    assert config["decoder_model_name"] == "someone/base"
