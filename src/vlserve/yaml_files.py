"""The YAML files of serving_config/ that hold settings, as dictionaries."""

import stat
from pathlib import Path
from typing import Any

import yaml

from vlserve.errors import SettingsError
from vlserve.text_files import encoding_hint

MAX_BYTES = 128 * 1024
"""Of such a file: to parse it takes PyYAML seconds a megabyte."""
MAX_MERGED = 10_000
"""Entries that ``<<`` may bring into a file's mappings: a few lines could bring billions."""
_MERGE = "tag:yaml.org,2002:merge"


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the entries of a YAML file; an empty file has none.

    Raises:
        SettingsError: In one line, what is wrong with the file: it is no regular file, cannot be
            read, is over a limit, is not YAML in UTF-8, names an entry twice, or holds something
            else than named entries.
    """
    try:
        entry = file.stat()
        if not stat.S_ISREG(entry.st_mode):
            raise SettingsError(f"{file} is not a regular file")
        if entry.st_size > MAX_BYTES:
            raise SettingsError(f"{file} has {entry.st_size} bytes, more than {MAX_BYTES}")
        text = file.read_bytes().decode("utf-8-sig")
        content = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        hint = encoding_hint(file)
        raise SettingsError(
            f"{file} is not UTF-8, at byte {error.start}: save it so{hint}"
        ) from error
    except RecursionError as error:
        raise SettingsError(f"{file} is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise SettingsError(f"{file} is not YAML: {_one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SettingsError(f"{file} holds no settings: `name: value` lines are expected")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's own, but that no entry is named twice, and merges are bounded."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._merged = 0

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        names = set()
        for name, _ in node.value:
            key = (name.tag, name.value) if isinstance(name, yaml.ScalarNode) else name
            if key in names:
                raise _refusal(f"{name.value!r} is there twice", name)
            names.add(key)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for name, value in node.value:
            if name.tag == _MERGE:
                self._count(value.value if isinstance(value, yaml.SequenceNode) else [value])
        super().flatten_mapping(node)

    def _count(self, sources: list[yaml.Node]) -> None:
        for source in sources:
            if isinstance(source, yaml.MappingNode):
                self.flatten_mapping(source)
                self._merged += len(source.value)
            if self._merged > MAX_MERGED:
                raise _refusal(f"merges bring more than {MAX_MERGED} entries", source)


def _refusal(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _one_line(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{error.problem or error.context}{place}"
