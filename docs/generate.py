"""Write docs/reference/: every command, setting and error, from the code that has them.

`python docs/generate.py` writes the pages; with `--check` it writes nothing, and exits with 1 when
a page is not what it would write.
"""

import argparse
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperArgument, TyperCommand

if TYPE_CHECKING:
    from vlserve.runtime.errors import VlserveError

PROJECT = Path(__file__).parents[1]
FOLDER = PROJECT / "docs" / "reference"
NOTE = "<!-- Written by docs/generate.py: change the code, then run `make reference`. -->"

ABOUT_COMMANDS = """\
`vlserve --help` lists the commands, `vlserve COMMAND --help` shows one. Exit codes: 0 done, 1
refused or failed with one line on stderr, 2 wrong usage. `vlserve --install-completion` makes the
shell complete commands and options."""
ABOUT_SETTINGS = """\
Sources, strongest first: environment variables, `serving_config/vlserve.yaml` of the project
folder, the defaults. A variable's name is VLSERVE_, the section, two underscores and the setting,
as in `VLSERVE_GATEWAY__PORT=8088`; a whole section is JSON, as in `VLSERVE_GATEWAY='{"port":
8088}'`. `serving_config/rollout.yaml` says how a rollout is judged:
[gray-release.md](../gray-release.md)."""
ABOUT_ERRORS = """\
Every answer that is not 2xx is `{"error": {"code", "message"}}`. The message says what happened;
the code stays the same from release to release."""
ABOUT_CLASSES = """\
The classes of `vlserve.errors`; a child stands below its parent. The command line prints the
message and ends with exit code 1. A class without a code does not go over HTTP."""
ABOUT_CHECKPOINTS = """\
`vlserve export RECIPE --checkpoint FILE` reads safetensors files, torch files (`torch.save`, zip or
older) of tensors and plain values, and both in shards, by the `*.index.json` that lists them.
Nothing in a file runs. What was chosen or set right is said."""
CHECKPOINTS_READ = (
    ("tensors by name", "as they are"),
    (
        "tensors beside other values (`epoch`, a score)",
        "the tensors, where their names have dots",
    ),
    (
        "`{{KEY: weights, …}}` with whatever else, also keys in keys",
        "the only weights there are, under any key",
    ),
    (
        "weights under several keys",
        "those under the first of {preferred}; else the only ones whose key does not speak of an "
        "average (`ema`, `teacher`, `swa`, …); else refused. `--state KEY` chooses",
    ),
    (
        "`module.` in front of names (DataParallel, DDP, SWA with `n_averaged`)",
        "without it",
    ),
    ("{inserted} in names", "without them, wherever they stand"),
    (
        "another prefix that all names share (`model.`, `net.`, …)",
        "without it, where the recipe does not know the names with it",
    ),
    ("`*.index.json` (transformers), its shards beside it", "each tensor from its shard"),
)
MODULES_WITH_ERRORS = (
    "vlserve.errors",
    "vlserve.control.judge.evidence",
    "vlserve.control.rollouts.state",
)
GATEWAY_ERRORS = {
    "bad_request": "The request is not valid HTTP.",
    "body_too_large": "The body is larger than `gateway.max_body_bytes`.",
    "deadline_exceeded": "There was no answer within `gateway.timeout_s`.",
    "engine_failed": "The engine lost the request, for example because a worker died.",
    "engine_unavailable": "No engine instance answers.",
    "gateway_error": "The gateway could not answer; the message has Envoy's reason.",
    "gateway_starting": "The gateway has no routes yet.",
    "headers_too_large": "The headers are too large.",
    "method_not_allowed": "Predictions take POST, GET and PUT, and `/health` and `/ping` take GET.",
    "model_not_found": "No model of this name is served.",
    "not_found": "There is nothing at this path; predictions are at `POST /predictions/{model}`.",
    "not_implemented": "vlserve has no such call of TorchServe's or of gRPC; the message says what "
    "does it here.",
    "overloaded": "The version's queue is full, none of its workers is up, or the gateway is short "
    "of memory.",
    "path_too_long": "The path with its query is longer than 4,000 bytes: fields go into the body.",
    "rate_limited": "There were more requests than `gateway.rate_limit_per_s`.",
    "request_timeout": "The request did not arrive in time.",
    "transfer_encoding_unsupported": "The body comes in another transfer encoding than chunked.",
    "unauthorized": "No key came, as `X-Api-Key` or as a Bearer token, that is one of "
    "`gateway.api_keys`.",
    "version_not_found": "The model has no such version, or no version with traffic.",
    "version_unavailable": "The version is not loaded at the moment.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 on a difference")
    check = parser.parse_args().check
    pages = {
        "cli.md": cli_page(),
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "checkpoints.md": checkpoints_page(),
    }
    stale = [name for name, text in pages.items() if _kept(FOLDER / name) != text]
    if check and stale:
        sys.exit(f"docs/reference: {', '.join(stale)} out of date; run `make reference`")
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages[name], encoding="utf-8")
        print(f"wrote docs/reference/{name}")


def _kept(page: Path) -> str | None:
    return page.read_text(encoding="utf-8") if page.exists() else None


def _table(heads: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |" for row in lines
    )


# The command line


def cli_page() -> str:
    """Return the page of the commands, in the groups and the order of `vlserve --help`."""
    from vlserve.cli import app
    from vlserve.cli.commands import all_commands
    from vlserve.cli.parameters import Group

    parts = [
        f"# Command line\n\n{NOTE}\n",
        f"{ABOUT_COMMANDS}\n",
    ]
    for group in Group:
        parts.append(f"## {group}\n")
        for name, command in all_commands(app).items():
            if command.rich_help_panel == group:
                parts.append(_command(name, command))
    return "\n".join(parts)


def _command(name: str, command: TyperCommand) -> str:
    context = typer.Context(command, info_name=f"vlserve {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    rows = (
        (f"`{_name(parameter)}`", _values(parameter, context), _default(parameter), parameter.help)
        for parameter in command.params
        if isinstance(parameter, TyperArgument) or hasattr(parameter, "help")
    )
    table = _table(("parameter", "value", "default", "meaning"), rows)
    about = inspect.cleandoc(command.help or "")
    return f"### {name}\n\n`vlserve {name} {usage}`\n\n{about}\n\n{table}\n"


def _name(parameter: Any) -> str:
    return ", ".join(parameter.opts) if not isinstance(parameter, TyperArgument) else parameter.name


def _values(parameter: Any, context: typer.Context) -> str:
    if getattr(parameter, "is_flag", False):
        return "flag"
    text = re.sub(r"^[<\[](.*)[>\]]$", r"\1", parameter.display_type(context)).replace(" range", "")
    bounds = [("at least", parameter.min), ("at most", parameter.max)]
    return ", ".join([text, *(f"{words} {bound}" for words, bound in bounds if bound is not None)])


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    nothing = parameter.default is None or parameter.default is False
    return "" if nothing else f"`{parameter.default}`"


# Settings


def settings_page() -> str:
    """Return the page of the settings, a section each."""
    from vlserve.settings import Settings

    parts = [
        f"# Settings\n\n{NOTE}\n",
        f"{ABOUT_SETTINGS}\n",
    ]
    sections = {n: f.annotation for n, f in Settings.model_fields.items() if _is_section(f)}
    plain = {n: f for n, f in Settings.model_fields.items() if n not in sections}
    parts.append(_settings_of("", "", plain))
    for name, section in sections.items():
        assert section is not None
        parts.append(_settings_of(name, inspect.getdoc(section) or "", section.model_fields))
    return "\n".join(parts)


def _is_section(field: FieldInfo) -> bool:
    return inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel)


def _settings_of(section: str, about: str, fields: Mapping[str, FieldInfo]) -> str:
    prefix = f"{section}." if section else ""
    rows = (
        (
            f"`{prefix}{name}`",
            f"`VLSERVE_{prefix.upper().replace('.', '__')}{name.upper()}`",
            _setting_default(field),
            _described(f"{prefix}{name}", field),
        )
        for name, field in fields.items()
    )
    table = _table(("setting", "variable", "default", "meaning"), rows)
    title = f"## {section}\n\n{about}\n\n" if section else ""
    return f"{title}{table}\n"


def _described(name: str, field: FieldInfo) -> str:
    if not field.description:
        sys.exit(f"setting {name} has no description: give its Field one")
    return field.description


def _setting_default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "see right"
    match field.default:
        case None | ():
            return "none"
        case value:
            return f"`{value}`"


# Errors


def errors_page() -> str:
    """Return the page of the errors: what a client of the gateway, of the control service and of
    the command line can meet."""
    return "\n".join(
        [
            f"# Errors\n\n{NOTE}\n",
            f"{ABOUT_ERRORS}\n",
            "## Of predictions\n\nBy the model's handler, for one request of a batch:\n",
            _table(("code", "HTTP status", "meaning"), _request_errors()),
            "\nBy the gateway:\n",
            _table(("code", "HTTP status", "meaning"), _gateway_errors()),
            f"\n## Of the control service and the command line\n\n{ABOUT_CLASSES}\n",
            _table(("class", "code", "HTTP status", "meaning"), _classes()),
            "\nOf the control service, for requests that it does not read any further:\n",
            _table(("code", "HTTP status", "meaning"), _control_codes()),
            "",
        ]
    )


def _request_errors() -> Iterator[Sequence[str]]:
    from vlserve.runtime.answering import HTTP_STATUS
    from vlserve.runtime.errors import ErrorCode

    meanings = dict(re.findall(r"^    (\w+) = .*?#\s*(.+)$", inspect.getsource(ErrorCode), re.M))
    for code in ErrorCode:
        yield f"`{code}`", str(HTTP_STATUS[code]), _sentence(meanings[code.name])


def _gateway_errors() -> Iterator[Sequence[str]]:
    """Yield the gateway's codes where they are: Envoy's own replies, the routes', the engine's."""
    static = (PROJECT / "serving_config/gateway/envoy.yaml").read_text(encoding="utf-8")
    mapper = (
        r"default_value: (\d+),[^\n]*\n(?:[^\n]*status_code: (\d+)[^\n]*\n)?"
        r"(?:[^\n]*headers_to_add[^\n]*\n)?[^\n]*error: \{code: (\w+)"
    )
    matches = re.findall(mapper, static)
    statuses = {code: override or status for status, override, code in matches}
    replies = re.findall(r"error: \{code: (\w+)", static)
    statuses |= {code: statuses.get(code, "503") for code in replies}
    for file in sorted((PROJECT / "src/vlserve/control/gateway").glob("*.py")):
        calls = re.findall(r'\brefusal\(\s*(\d+),\s*"(\w+)"', file.read_text(encoding="utf-8"))
        statuses |= {code: status for status, code in calls}
    lua = (PROJECT / "serving_config/gateway/engine.lua").read_text(encoding="utf-8")
    statuses |= dict.fromkeys(re.findall(r'^local \w+ = \{"(\w+)"', lua, re.M), "503")
    lua = (PROJECT / "serving_config/gateway/grpc_answer.lua").read_text(encoding="utf-8")
    statuses = dict(re.findall(r"(\w+) = (\d{3})\b", lua)) | statuses
    if statuses.keys() != GATEWAY_ERRORS.keys():
        sys.exit(f"gateway codes and their meanings: {statuses.keys() ^ GATEWAY_ERRORS.keys()}")
    for code, status in sorted(statuses.items(), key=lambda item: (item[1], item[0])):
        if status == "400" and code == "gateway_error":
            status = "400 and above"
        yield f"`{code}`", status, GATEWAY_ERRORS[code]


def _control_codes() -> Iterator[Sequence[str]]:
    from vlserve.control.api.errors import HTTP_CODES

    for status, (code, meaning) in HTTP_CODES.items():
        yield f"`{code}`", str(status), meaning


def _classes() -> Iterator[Sequence[str]]:
    from vlserve.runtime.errors import VlserveError

    for module in MODULES_WITH_ERRORS:
        import_module(module)
    yield from _tree(VlserveError, 0)


def _tree(kind: "type[VlserveError]", depth: int) -> Iterator[Sequence[str]]:
    code, status = _code_and_status(kind)
    meaning = textwrap.shorten(inspect.getdoc(kind) or "", 1000)
    if not meaning:
        sys.exit(f"{kind.__name__} has no docstring")
    yield f"{'&emsp;' * depth}`{kind.__name__}`", code, status, meaning
    for child in sorted(kind.__subclasses__(), key=lambda child: child.__name__):
        if child.__module__.startswith("vlserve."):
            yield from _tree(child, depth + 1)


def _code_and_status(kind: "type[VlserveError]") -> tuple[str, str]:
    from vlserve.control.api.errors import STATUS as statuses
    from vlserve.errors import ControlError

    status = next((status for parent, status in statuses.items() if issubclass(kind, parent)), 500)
    if status == 500 and not issubclass(kind, ControlError):
        return "", ""
    return f"`{kind.code}`", str(status)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


# Checkpoints


def checkpoints_page() -> str:
    """Return the page of what `vlserve export` reads, and what it refuses by name."""
    from vlserve.exporter.file_kinds import FOLDERS, KINDS
    from vlserve.exporter.weights import INSERTED, NOT_WHOLE, PREFERRED

    words = {
        "preferred": ", ".join(f"`{key}`" for key in PREFERRED),
        "inserted": ", ".join(f"`{part}.`" for part in INSERTED),
    }
    formats = ((what.format(**words), how.format(**words)) for what, how in CHECKPOINTS_READ)
    refusals = ((kind.what, kind.do) for kind in KINDS)
    tensors = ((kind.what, kind.do) for kind in NOT_WHOLE)
    folders = ((f"`{kind.pattern}`", kind.what, kind.do) for kind in FOLDERS)
    parts = [
        f"# Checkpoints\n\n{NOTE}\n\n{ABOUT_CHECKPOINTS}\n",
        f"{_table(('in the file', 'what is read'), formats)}\n",
        "## Refused by name\n",
        "A whole pickled module, an optimizer's state, one process's part of a distributed "
        "checkpoint and the arguments of a training run, in a torch file, are refused by name too, "
        "and so is one shard of several.\n",
        f"{_table(('the file is', 'what to do'), refusals)}\n",
        "So are tensors that are not a network's whole weights:\n",
        f"{_table(('the file holds', 'what to do'), tensors)}\n",
        "A folder is refused by what lies in it:\n",
        _table(("a file called", "the folder is", "what to do"), folders),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
