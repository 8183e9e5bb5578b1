"""Documentation: its commands parse as their programs do, its names exist, its Python runs."""

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence

import pytest
import yaml
from absl import flags

import clara_jax
from clara_jax import cli, command_line, main
from clara_jax import config as config_lib
from clara_jax.api import Clara
from clara_jax.config import Data
from clara_jax.errors import UserError
from clara_jax.evaluation.sweep import plan
from docs import hooks, method
from tests.fixtures.command import forget

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
RESULTS = sorted((ROOT / "docs" / "results").glob("*.tsv"))
COMMANDS = {name: module for group in cli.COMMANDS.values() for name, (module, _) in group.items()}
# Programs of others, whose arguments are not looked at.
OTHERS = {"pre-commit", "xprof"}
# Prints the words of every command that a text of bash runs, and runs none but dry runs.
RECORDER = r"""
set -uo pipefail
record() { printf '%s\0' "$@" END; }
command_not_found_handle() { record "$@"; }
source() { :; }
pip() { record pip "$@"; }
bash() {
  record bash "$@"
  if grep -q -- --dry-run "$1"; then
    PATH=$REAL "$REAL_BASH" "$1" --dry-run "${@:2}" < /dev/null > dry || record FAILED "$@"
    while read -r line; do case $line in python*) record DRY "$line" ;; esac; done < dry
  fi
}
grep() { PATH=$REAL command grep "$@"; }
REAL=$PATH REAL_BASH=$BASH PATH=/nowhere
"""


def blocks(page: pathlib.Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def spans(page: pathlib.Path) -> list[str]:
    """Inline code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]


def is_command(span: str) -> bool:
    return re.match(r"([A-Z_]+=\S+ )*(python -m|bash|pip|clara) ", span) is not None


@pytest.fixture(scope="module")
def run_by(tmp_path_factory) -> Callable[[str], Iterator[list[str]]]:
    """Gives the commands that a text of bash runs, and those that launch scripts would."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("launch", "configs", ".ci"):  # dry runs look for the files that they are given
        (folder / name).symlink_to(ROOT / name)
    for name in ("runs/16x", "runs/4x"):
        (folder / name).mkdir(parents=True)

    def words(text: str) -> Iterator[list[str]]:
        for name in re.findall(r"\w+\.jsonl", text):
            (folder / name).touch()
        done = subprocess.run(
            ["bash", "-c", f"{RECORDER}\n{text.replace('.ci/run', 'bash .ci/run')}"],
            cwd=folder, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        assert not done.stderr, done.stderr
        for command in done.stdout.split("\0END\0")[:-1]:
            first, *rest = command.split("\0")
            yield shlex.split(rest[0]) if first == "DRY" else [first, *rest]

    return words


class Parsed(BaseException):
    """A command line parsed; what it asks for is not to be done."""


class Commands:
    """Checks the words of commands; with `partly` not all that one needs has to be there."""

    def __init__(self):
        self.partly = False

    def __call__(self, words: Sequence[str], partly: bool = False) -> None:
        self.partly = partly
        program, *rest = words
        assert hasattr(self, f"_{program}") or program in OTHERS, f"unknown: {shlex.join(words)}"
        getattr(self, f"_{program}", lambda _: None)(rest)

    def _python(self, argv: list[str]) -> None:
        if argv[0] == "-m":
            self._module(argv[1], argv[2:])
        else:
            assert (ROOT / argv[0]).is_file(), argv[0]

    def _clara(self, argv: list[str]) -> None:
        name, *rest = argv
        if not rest:
            assert name in (*COMMANDS, "--help", "--version")
        elif COMMANDS[name] == "main":
            self._module("clara_jax.main", [f"--mode={name}", *rest])
        else:
            self._module(f"clara_jax.{COMMANDS[name].removesuffix('.__main__')}", rest)

    def _module(self, name: str, argv: list[str]) -> None:
        if name == "pip":
            return self._pip(argv)
        if name == "clara_jax.main":
            return None if "--help" in argv else self._mode(argv)
        found = importlib.util.find_spec(name)
        assert found is not None, f"{name}: no such module"
        name += ".__main__" * (found.submodule_search_locations is not None)
        with pytest.raises((Parsed, SystemExit)) as e:
            importlib.import_module(name).main(argv)
        assert e.type is Parsed or e.value.code == 0, argv
        if ".sweep." in name:
            plan.load(argv[0])

    def _mode(self, argv: Sequence[str]) -> None:
        forget()
        given = dict(a.removeprefix("--").partition("=")[::2] for a in argv)
        assumed = {"config": "quickstart", "format": "native"} if self.partly else {}
        needs = main.MODES[given.get("mode", "train")].needs.split() if self.partly else []
        more = [f"--{name}={assumed.get(name, 'x')}" for name in needs if name not in given]
        with pytest.MonkeyPatch.context() as patch:
            mode = main.MODES[given.get("mode", "train")]
            argv = command_line.with_file(["main", *argv, *more], mode)
            patch.setattr(sys, "argv", argv)  # where options are looked for
            command_line.parse(argv)
        mode = flags.FLAGS["mode"].value
        values = command_line.arguments(mode, main.MODES[mode], main.FLAGS)
        if "config" in values:
            config_lib.freeze(values["config"])

    def _pip(self, argv: list[str]) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = re.findall(r"\[(.*)\]", " ".join(argv))
        assert {x for e in extras for x in e.split(",")} <= set(project["optional-dependencies"])

    def _bash(self, argv: list[str]) -> None:
        assert (ROOT / argv[0]).is_file(), argv[0]
        options = [a for a in argv if a.startswith("--config")]
        if options and argv[0] in ("launch/tpu_vm.sh", "launch/gke/submit.sh"):  # what runs there
            self._mode(["--workdir=x", *options])

    def _curl(self, argv: list[str]) -> None:
        routes = (ROOT / "clara_jax/serving/routes.py").read_text(encoding="utf-8")
        path = next(a for a in argv if "localhost" in a).partition("8000")[2]
        assert f'"{path}"' in routes
        json.loads(argv[argv.index("-d") + 1])


@pytest.fixture
def check(monkeypatch) -> Commands:
    commands, parse = Commands(), argparse.ArgumentParser.parse_args

    def parse_alone(parser, argv=None):
        for action in parser._actions if commands.partly else ():
            action.required = False
        parse(parser, argv)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_alone)
    monkeypatch.chdir(ROOT)
    return commands


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_parse(page, run_by, check):
    for words in run_by("\n".join(f"(\n{block}\n)" for block in blocks(page, "bash"))):
        check(words)
    inline = [span for span in spans(page) if is_command(span) and "…" not in span]
    for words in run_by("\n".join(inline)):
        check(words, partly=True)


def test_wrong_commands_do_not(check):
    for wrong in (
        "clara train --config=quickstart",
        "clara train --config=quickstart --workdir=x --config.train.stps=3",
        "clara train --config=quickstart --workdir=x --config.data.rate=0",
        "clara fidelity --outptu=x runs/a",
        "clara sweep configs/sweep.py:nothing --output=x",
        "clara nothing --a=b",
        "python -m benchmarks.nothing",
        "python -m clara_jax.main --mode=ask --workdir=x --topology=v5e:4x4",
        "bash launch/nothing.sh",
        "bash launch/tpu_vm.sh run -- --config=configs/scp.py:tiny --config.nope=1",
        "pip install -e '.[nothing]'",
        "curl localhost:8000/v1/nothing -d {}",
        "nothing --a=b",
    ):
        with pytest.raises((AssertionError, KeyError, UserError)):
            check(shlex.split(wrong))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_exist(page):
    groups = {name.partition(".")[0] for name in config_lib.OPTIONS if "." in name}
    for span in spans(page):
        if re.fullmatch(r"(clara_jax|configs|tests|launch|benchmarks|docs)/[\w./*]+", span):
            assert list(ROOT.glob(span)), f"{span}: no such file"
        option = re.fullmatch(r"(?:--)?(config\.)?((\w+)(?:\.\w+)?)(?:=.*)?", span)
        if option and (option[1] or (option[3] in groups and "." in option[2])):
            name = option[2]
            if name.rpartition(".")[2] not in ("json", "jsonl", "py", "option", "NAME"):
                assert name in config_lib.OPTIONS or name in groups, f"{span}: no such option"
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / link).exists(), f"{link}: no such file"


def test_the_papers_sweeps_exist(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    names = re.findall(r"`(?:SWEEP)?:(\w+)`", text)
    assert len(names) > 8
    for name in names:
        plan.load(f"configs/paper.py:{name}")


@pytest.fixture(scope="module")
def setup(random_setup):
    return random_setup(Data(document_length=40, rate=10), 5)


@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_python_runs(name, setup, monkeypatch, tmp_path, capsys):
    """With a random model, whatever is loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(clara_jax, "load", lambda *_, **__: Clara(*setup), raising=False)
    names: dict = {}
    for code in blocks(ROOT / name, "python"):
        exec(compile(code, name, "exec"), names)
    assert "clara" in names


# --- Tables --------------------------------------------------------------------------------------


def test_readme_is_short_and_its_tables_are_those_of_the_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and "bash launch/test.sh" in text
    assert hooks.renewed(text) == text


def test_every_result_says_where_it_is_from_and_is_shown(run_by, check):
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    renew = []
    for path in RESULTS:
        about, head, rows = hooks.read(path.stem)
        assert about["source"] and rows and {len(row) for row in rows} == {len(head)}, path
        assert f"<!-- results: {path.stem} -->" in shown, path
        renew.append(about["renew"])
    for words in run_by("\n".join(renew)):
        check(words)


def test_a_page_gets_its_tables():
    page = hooks.on_page_markdown("a\n\n<!-- results: judge -->\n\nb\n")
    assert "| verdicts | 400 |\n" in page and "Renew with* `clara judge" in page
    assert hooks.on_page_markdown("nothing") == "nothing"
    options = hooks.on_page_markdown("<!-- options -->")
    assert all(f"| `{name}` |" in options for name in config_lib.OPTIONS)
    assert "| `data.holdout` | `0.0` | share of the documents (by title) that belong to dev |" in (
        options
    )
    assert "| `clara judge` |" in hooks.on_page_markdown("<!-- commands -->")
    flags = hooks.on_page_markdown("<!-- flags -->")
    assert "| `export` | `--workdir`, `--format`, `--output` |" in flags
    assert all(f"| `--{name}` |" in flags for name in main.FLAGS)


def test_the_picture_is_drawn_anew():
    assert method.FILE.read_text(encoding="utf-8") == method.svg()


# --- What other programs read ---------------------------------------------------------------------


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_scripts_that_exist(path, run_by, check):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert steps and all(("uses" in step) != ("run" in step) for step in steps)
    text = "\n".join(f"(\n{step['run']}\n)" for step in steps if "run" in step)
    environment = "GITHUB_ENV=/dev/null"
    for words in run_by(f"{environment}\n{text}"):
        check(words)


def test_other_files_of_yaml():
    hooks_of_commits = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [hook["id"] for repo in hooks_of_commits for hook in repo["hooks"]]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["version"] == project["version"]
    assert f"## {project['version']}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_pages_build(tmp_path):
    pytest.importorskip("material", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment, timeout=120)
    assert "Clara" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow  # a minute: three trainings in processes of their own
def test_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    monkeypatch.setenv("CLARA_RUNS", str(tmp_path))
    small = "--config.train.steps=1 --config.train.batch_rows=4 --config.mesh.fsdp=1"
    monkeypatch.setenv("CLARA_OPTIONS", f"{small} --config.data.sources=facts:8")
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": ROOT}}).execute()
    assert "of 20 right" in notebook.cells[-1].outputs[-1].text
