"""What a checkpoint's name stands for: a folder of this machine, or one of a hub repository."""

import os
import pathlib
import re
from collections.abc import Iterable

import huggingface_hub

from clara_jax.errors import UserError
from clara_jax.interop import base, hf

# owner/name or owner/name@revision, with or without folders behind.
_NAME = re.compile(r"(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[\w.-]+))?(?P<folder>(/\w[\w.-]*)*)/?")

# The files of a folder that are fetched. `*` stands for slashes too, hence what is left out.
_FETCH = (
    "*.json",
    "*.jinja",
    "*.safetensors",
    "adapters.pth",
    "decoder_first_last_layers.pth",
    "adapter_model.bin",
)
_LEAVE = ("*/*", "consolidated*")

# A folder is a checkpoint if it has one of these and, beside it, a name with the ending.
_MARKS = (
    ("adapters.pth", "config.json"),  # of the PyTorch release
    ("adapter_config.json", ""),  # of PEFT
    ("config.json", ".safetensors"),  # a whole model
    ("config.json", "checkpoints"),  # a workdir
)

_SHOWN = 8  # checkpoints that a message lists
_DEPTH = 3  # levels of a local folder that are looked at


def resolve_source(name: str | os.PathLike[str]) -> pathlib.Path:
    """Finds the folder of a checkpoint; one of a hub repository is downloaded, without the others.

    Args:
        name: a folder; or `owner/name` of a hub repository, `owner/name/some/folder` of it, with
            `@revision` (branch, tag or commit) behind `owner/name` unless it is the newest.
            Existing folders take precedence.

    Raises:
        UserError: nothing has that name; no access, or no network; or no checkpoint is in it. Where
            folders of it are checkpoints, they are listed.
    """
    name = os.fspath(name)
    path = pathlib.Path(name)
    if name and path.is_dir():
        inside = _checkpoints(_local_files(path))
        if inside and "" not in inside:
            raise UserError(f"{name}: holds no checkpoint itself{_choice(name, inside)}")
        return path
    match = _NAME.fullmatch(name)
    # A slip in a local name is nothing to ask the network about.
    for parent in {path.parent, pathlib.Path(match["repo"] if match else path)}:
        inside = _checkpoints(_local_files(parent)) if parent.is_dir() else []
        if inside and parent.name:
            where = path.relative_to(parent).as_posix()
            raise UserError(f"{parent}: has no folder {where!r}{_choice(str(parent), inside)}")
    if match is None or path.exists():
        raise UserError(f"{name!r} is neither a folder nor a hub id (owner/name)")
    repo, folder = match["repo"], match["folder"].strip("/")
    if not base.is_hub_id(repo):
        raise UserError(f"{name!r} is neither a folder nor a hub id (owner/name)")
    return _download(repo, match["revision"], folder)


def _download(repo: str, revision: str | None, folder: str) -> pathlib.Path:
    prefix = f"{folder}/" if folder else ""
    snapshot = hf.ask_hub(
        huggingface_hub.snapshot_download,
        repo,
        revision=revision,
        allow_patterns=[prefix + pattern for pattern in _FETCH],
        ignore_patterns=[prefix + pattern for pattern in _LEAVE],
    )
    path = pathlib.Path(snapshot) / folder
    if "" in _checkpoints(_local_files(path)):
        return path
    files = hf.ask_hub(huggingface_hub.HfApi().list_repo_files, repo, revision=revision)
    where = f"{repo}@{revision}" if revision else repo
    inside = _checkpoints(files)
    if folder and not any(file.startswith(prefix) for file in files):
        raise UserError(f"{where} on the hub: has no folder {folder!r}{_choice(where, inside)}")
    place = f"{where}/{folder}" if folder else where
    raise UserError(f"{place} on the hub: holds no checkpoint itself{_choice(where, inside)}")


def _local_files(folder: pathlib.Path) -> list[str]:
    patterns = ("/".join("*" * depth) for depth in range(1, _DEPTH + 1))
    paths = (path for pattern in patterns for path in folder.glob(pattern))
    return [path.relative_to(folder).as_posix() for path in paths]


def _checkpoints(files: Iterable[str]) -> list[str]:
    """The folders that are checkpoints, "" for the uppermost one."""
    folders: dict[str, set[str]] = {}
    for file in files:
        parts = file.split("/")
        for i, part in enumerate(parts):
            folders.setdefault("/".join(parts[:i]), set()).add(part)
    return sorted(
        folder
        for folder, names in folders.items()
        if any(mark in names and any(n.endswith(end) for n in names) for mark, end in _MARKS)
    )


def _choice(where: str, folders: list[str]) -> str:
    if not folders:
        return "; no folder of it is a checkpoint"
    shown = [f"{where}/{folder}" if folder else where for folder in folders[:_SHOWN]]
    more = f" and {len(folders) - _SHOWN} more" if len(folders) > _SHOWN else ""
    return f"; checkpoints: {', '.join(shown)}{more}"
