"""What the Python files of an archive say, read as text: nothing of them is imported or run."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vlserve.errors import NotAdopted

OF_TORCHSERVE = "ts.torch_handler"
MAX_SOURCE_BYTES = 8 * 1024**2
_OUTSIDE = re.compile(r"/(home|mnt|data|root|opt|srv|var|Users|workspace|workdir|app|media)/\S+")


@dataclass(frozen=True)
class Place:
    """Words in a file, and their line."""

    words: str
    line: int


class Source:
    """One file, parsed."""

    def __init__(self, file: Path, title: str, package: str) -> None:
        """``package``: what relative imports start from. NotAdopted where it is no Python of this
        interpreter."""
        self._package = package
        self.called = title
        self.module = file.stem
        if file.stat().st_size > MAX_SOURCE_BYTES:
            raise NotAdopted(f"{title} has more than {MAX_SOURCE_BYTES} bytes of code")
        try:
            self._tree = ast.parse(file.read_bytes(), title)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise NotAdopted(f"{title} is not Python {version}: {error}") from error

    @cached_property
    def _top(self) -> list[ast.stmt]:
        """Statements that run at import, those inside of if and try too."""

        def within(body: list[ast.stmt]) -> Iterator[ast.stmt]:
            for statement in body:
                yield statement
                for part in ("body", "orelse", "finalbody", "handlers"):
                    if isinstance(statement, ast.If | ast.Try | ast.With | ast.ExceptHandler):
                        yield from within(getattr(statement, part, []))

        return list(within(self._tree.body))

    @cached_property
    def classes(self) -> Mapping[str, ast.ClassDef]:
        """The classes that the file defines; imported ones do not count."""
        return {
            statement.name: statement
            for statement in self._top
            if isinstance(statement, ast.ClassDef)
        }

    def binds(self, name: str) -> bool:
        """Return whether a name stands for something in the module once it is imported."""
        for statement in self._top:
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [statement.name]
            elif isinstance(statement, ast.Import | ast.ImportFrom):
                names = [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
            elif isinstance(statement, ast.Assign):
                names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            else:
                continue
            if name in names:
                return True
        return False

    def methods(self, name: str) -> Mapping[str, ast.stmt]:
        """Return the methods that a class itself defines."""
        return {
            statement.name: statement
            for statement in self.classes[name].body
            if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
        }

    def functions(self, name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """Yield the functions and methods of this name, wherever they are defined."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
                yield node

    def names_used(self) -> frozenset[str]:
        """Return all names and attributes in it, and what it imports by name."""
        names: set[str] = set()
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names.update(alias.name for alias in node.names)
        return frozenset(names)

    def imports(self) -> frozenset[str]:
        """Return the full names of what it imports and cannot do without, modules and what is taken
        from them: what stands in a ``try`` that catches a failed import is not among them."""
        optional = {
            inner
            for node in ast.walk(self._tree)
            if isinstance(node, ast.Try) and any(map(_catches_imports, node.handlers))
            for statement in node.body
            for inner in ast.walk(statement)
        }
        names: set[str] = set()
        for node in ast.walk(self._tree):
            if node in optional:
                continue
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                within = f"{module}." if module else ""
                names.update({module} - {""}, (f"{within}{alias.name}" for alias in node.names))
        return frozenset(names)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = self._package.split(".") if self._package else []
        above = package[: len(package) - node.level + 1]
        return ".".join([*above, *([node.module] if node.module else [])])

    def paths_outside(self) -> Iterator[Place]:
        """Yield absolute paths that stand in it."""
        for node in ast.walk(self._tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if (
                isinstance(text, str)
                and isinstance(node, ast.Constant)
                and _OUTSIDE.fullmatch(text)
            ):
                yield Place(text, node.lineno)

    def downloads(self) -> Iterator[Place]:
        """Yield what it fetches by a name that stands in the code: models of a hub, URLs."""
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            first = node.args[0]
            if (
                name in _FETCHES
                and isinstance(first, ast.Constant)
                and isinstance(first.value, str)
            ):
                yield Place(first.value, node.lineno)


_FETCHES = frozenset({"from_pretrained", "urlretrieve", "urlopen", "load_state_dict_from_url"})


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = {getattr(node, "id", "") for node in ast.walk(handler.type)}
    return bool(names & {"ImportError", "ModuleNotFoundError", "Exception"})


class Sources:
    """All Python files of an archive, by their modules."""

    def __init__(self, folder: Path, archive_name: str) -> None:
        self._folder = folder
        self._called = archive_name
        self._read: dict[Path, Source] = {}

    def find(self, module: str) -> Source | None:
        """Return the archive's own module of this dotted name; None where it is not its own."""
        path = self._folder.joinpath(*module.split("."))
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return self.read(file)
        return None

    def holds(self, module: str) -> bool:
        """Return whether the top of a dotted name is the archive's own: a file, a package, or a
        folder, which Python takes for a package as well."""
        top = module.partition(".")[0]
        return self.find(top) is not None or (self._folder / top).is_dir()

    def read(self, file: Path) -> Source:
        """Return the source in a file of the archive."""
        if file not in self._read:
            name = file.relative_to(self._folder)
            package = ".".join(name.parent.parts)
            self._read[file] = Source(file, f"{self._called}: {name.as_posix()}", package)
        return self._read[file]

    def reached_from(self, *modules: str) -> list[Source]:
        """Return the sources that importing ``modules`` imports, TorchServe's handlers too."""
        sources: dict[str, Source] = {}
        queue = list(modules)
        while queue:
            name = queue.pop()
            source = self.find(name) or default_handler(name)
            if source is None or name in sources:
                continue
            sources[name] = source
            queue += source.imports()
        return list(sources.values())


def default_handler(module: str) -> Source | None:
    """Return TorchServe's own handler of a dotted name, as installed; None where it has none."""
    name = module.removeprefix(f"{OF_TORCHSERVE}.")
    spec = importlib.util.find_spec("ts")
    if name == module or not name.isidentifier() or spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "torch_handler" / f"{name}.py"
    return Source(file, f"TorchServe's {name}", OF_TORCHSERVE) if file.is_file() else None
