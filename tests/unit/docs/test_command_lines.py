"""Every command line in the documents is at least parsed: its program, words and options exist.

tests/e2e/test_docs.py runs those of ```console fences; here stand also those that take minutes.
"""

import ast
import importlib.util
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from typer.core import TyperCommand, TyperGroup

from support.documents import (
    LANGUAGES,
    PROJECT,
    Line,
    documents,
    fences,
    inline_code,
    shell_lines,
    text_lines,
    words,
)
from vlserve.cli import app
from vlserve.cli.commands import all_commands

ELLIPSIS = "…"
VALUES = {"VERSION": "1", "N": "1", "K": "1", "MODEL": "tagger"}
"""Placeholders of documents -> a value that they stand for."""
FREE = ("cat", "cd", "cp", "echo", "export", "git", "kill", "mkdir", "openssl", "printf")
"""Programs of others, of whose arguments nothing is ours."""


PATHS = (
    r"/predictions/\w+(/\d+)?(\?[\w=%&]+)?|/v2/models/\w+(/versions/\d+)?(/ready|/infer)?"
    r"|/v1/models/\w+:predict|/health|/ping"
)
"""Those of the gateway that documents may show."""


class Wrong(Exception):
    """A command line that would not work."""


@cache
def vlserve() -> tuple[TyperGroup, Mapping[str, TyperCommand]]:
    """Return the program and all its commands. Built once: that takes longer than to parse a line.
    Files of an example need not exist."""
    program, commands = typer.main.get_command(app), all_commands(app)
    assert isinstance(program, TyperGroup)
    for command in commands.values():
        for parameter in command.params:
            parameter.type_descriptor.parameter_info.exists = False
    return program, commands


def check_vlserve(args: list[str], inline: bool) -> None:
    program, commands = vlserve()
    if not args or args[0].startswith("-"):
        options = {option for parameter in program.params for option in parameter.opts}
        _require(set(args) <= options | {"--help"}, f"options {args}")
        return
    name, *rest = args
    if name == "COMMAND":
        return
    if isinstance(program.commands.get(name), TyperGroup):
        if not rest and inline:
            return
        name, rest = f"{name} {rest[0]}", rest[1:]
    _require(name in commands, f"no command {name}")
    command = commands[name]
    fragment = inline or ELLIPSIS in rest
    values = [VALUES.get(word, word) for word in rest if word != ELLIPSIS]
    if "--help" in values:
        return
    try:
        command.make_context(name, values)
    except Exception as error:  # of a module of typer's that has no public name
        if not (fragment and type(error).__name__ == "MissingParameter"):
            raise Wrong(f"{type(error).__name__}: {error}") from error


def check_make(args: list[str], inline: bool) -> None:
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", text, re.MULTILINE))
    for arg in args:
        name, _, value = arg.partition("=")
        _require(name in targets or bool(value and f"$({name})" in text), f"no target {arg}")


def check_python(args: list[str], inline: bool) -> None:
    match args:
        case ["-m", module, *rest] if module.startswith("benchmarks."):
            check_python([f"{module.replace('.', '/')}.py", *rest], inline)
        case ["-m", module, *_]:
            _require(importlib.util.find_spec(module) is not None, f"no module {module}")
        case ["-c", code]:
            compile(code, "<document>", "exec")
        case [file, *rest]:
            _require((PROJECT / file).is_file(), f"no file {file}")
            options = options_of(PROJECT / file) | {"--help"}
            _require(options_in(rest) <= options, f"options {options_in(rest) - options}")
        case _:
            raise Wrong("python without arguments")


def check_locust(args: list[str], inline: bool) -> None:
    file = PROJECT / args[args.index("-f") + 1]
    _require(file.is_file(), f"no file {file}")
    options = options_of(file) | {"--host", "--processes", "--headless"}
    _require(options_in(args) <= options, f"options {options_in(args) - options}")


def check_pip(args: list[str], inline: bool) -> None:
    for option, value in itertools.pairwise(args):
        if option in ("-r", "-c"):
            _require((PROJECT / value).is_file(), f"no file {value}")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extras in re.findall(r"\[([\w,-]+)\]", " ".join(args)):
        unknown = set(extras.split(",")) - project["optional-dependencies"].keys()
        _require(not unknown, f"no extras {unknown}")


def check_pytest(args: list[str], inline: bool) -> None:
    for arg in args:
        path = arg.partition("::")[0]
        if path.startswith("tests"):
            _require((PROJECT / path).exists(), f"no {path}")


def check_docker(args: list[str], inline: bool) -> None:
    services = yaml.safe_load((PROJECT / "docker-compose.yml").read_text(encoding="utf-8"))[
        "services"
    ]
    match [arg for arg in args if arg != "-T"]:
        case ["compose", "exec", service, "sh", "-c", line, *_]:
            _require(service in services, f"no service {service}")
            check_vlserve(shlex.split(line.partition("vlserve ")[2]), inline)
        case ["compose", "run", "--rm", service, "python", "-m", module, *_]:
            _require(service in services, f"no service {service}")
            _require(importlib.util.find_spec(module) is not None, f"no module {module}")
        case ["compose", "exec", service, program, *rest]:
            _require(service in services and program == "vlserve", f"no {service} {program}")
            check_vlserve(rest, inline)
        case ["build", "--target", target, *_]:
            dockerfile = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
            _require(f" AS {target}\n" in dockerfile, f"no target {target}")
        case ["compose", ("up" | "ps" | "stop" | "down" | "logs"), *_] | ["inspect" | "push", *_]:
            pass
        case _:
            raise Wrong("a form of docker that no check knows")


def check_kubectl(args: list[str], inline: bool) -> None:
    """Its own options are not ours; files of serving_config/ and our commands in pods are."""
    if "--" in args:
        program, *rest = args[args.index("--") + 1 :]
        _require(program == "vlserve", f"no {program} in a pod of ours")
        check_vlserve(rest, inline)
    for word in args:
        if word.startswith("serving_config/"):
            _require((PROJECT / word).exists(), f"no {word}")


def check_curl(args: list[str], inline: bool) -> None:
    addresses = [arg for arg in args if re.search(":80[89]0", arg)]
    _require(len(addresses) == 1, "no address of the gateway or the control service")
    path = re.sub(r"^(http://)?[\w.]+:\d+", "", addresses[0])
    if ":8090" in addresses[0]:
        _require(any(arg.startswith("Authorization: Bearer ") for arg in args), "no key")
        _require(
            path.startswith(("/health", "/models", "/versions", "/torchserve/")), f"path {path}"
        )
        return
    _require(
        bool(re.fullmatch(PATHS, path)),
        f"path {path}",
    )


CHECKS: Mapping[str, Callable[[list[str], bool], None]] = {
    "vlserve": check_vlserve,
    "make": check_make,
    "python": check_python,
    "python3.11": check_python,
    "locust": check_locust,
    "pip": check_pip,
    "pytest": check_pytest,
    "docker": check_docker,
    "kubectl": check_kubectl,
    "helm": check_kubectl,
    "curl": check_curl,
}


def _require(held: bool, problem: str) -> None:
    if not held:
        raise Wrong(problem)


def options_in(args: list[str]) -> set[str]:
    return {arg.partition("=")[0] for arg in args if arg.startswith("--")}


def options_of(file: Path) -> set[str]:
    """Return the options of a program, also those that a module of ours adds for it."""
    options, todo, seen = set[str](), [file], set[Path]()
    while todo:
        file = todo.pop()
        seen.add(file)
        own, imports = options_and_imports(file)
        options |= own
        todo += imports - seen
    return options


@cache
def options_and_imports(file: Path) -> tuple[set[str], set[Path]]:
    """Return the options that a file itself adds, and the files of ours that it imports."""
    options, imports = set[str](), set[Path]()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            values = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
            names = {value for value in values if re.fullmatch(r"--[a-z0-9-]+", value)}
            options |= names | {f"--no-{name.removeprefix('--')}" for name in names}
        if isinstance(node, ast.ImportFrom) and node.module:
            path = node.module.replace(".", "/")
            files = (root / f"{path}.py" for root in (PROJECT, PROJECT / "src"))
            imports |= set(filter(Path.is_file, files))
    return options, imports


def problems(line: Line) -> Iterator[str]:
    """Yield what is wrong with a line, or that no check covers it."""
    for part in re.split(r"\s(?:&&|\|\||;)\s(?![^']*'(?:[^']*'[^']*')*[^']*$)", line.text):
        program, *args = words(part) or [""]
        if program in FREE:
            continue
        if program not in CHECKS:
            yield f"{line}: no check covers {program!r}"
            continue
        try:
            CHECKS[program](args, line.inline)
        except Wrong as error:
            yield f"{line}: {error}"


def is_command(code: str) -> bool:
    """Whether a piece of code in a sentence is a command with arguments."""
    program, _, rest = code.removeprefix(".venv/bin/").partition(" ")
    return program in CHECKS and bool(rest)


def relative(document: Path) -> str:
    return str(document.relative_to(PROJECT))


@pytest.mark.parametrize("document", documents(), ids=relative)
def test_every_command_line_is_parsed(document: Path) -> None:
    lines = list(shell_lines(document))
    lines += [line for line in inline_code(document) if is_command(line.text)]
    assert [problem for line in lines for problem in problems(line)] == []


@pytest.mark.parametrize("document", documents(), ids=relative)
def test_every_fence_says_what_it_holds_and_hides_no_command(document: Path) -> None:
    assert [language for language, _ in fences(document) if language not in LANGUAGES] == []
    assert [str(line) for line in text_lines(document) if is_command(line.text.strip())] == []


@pytest.mark.parametrize(
    "text",
    [
        "vlserve releases tagger 2",
        "vlserve release tagger two",
        "vlserve release tagger 2 --weight 5",
        "vlserve export resnet_gru --out build",
        "make bend",
        "python -m benchmarks.serving.speed --no-such-option",
        "python -m benchmarks.none",
        "pip install 'vlserve[tpu]'",
        "locust -f loadtest/locustfile.py --no-such-option",
        "curl localhost:8080/prediction/tagger",
        "docker compose exec engine vlserve status",
        "docker build --target nothing .",
        "kubectl exec deployment/vlserve -c control -- vlserve stat",
        "kubectl apply -k serving_config/kubernetes/overlays/none",
        "vlserved status",
    ],
)
def test_a_wrong_line_is_found(text: str) -> None:
    assert list(problems(Line(PROJECT / "README.md", text)))
