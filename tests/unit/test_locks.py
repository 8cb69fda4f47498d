"""Whatever is installed is held to the sha256 of a lock. `make check` runs this too."""

import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = sorted(ROOT.glob("*.lock"))
ENTRY = re.compile(r"(?P<name>[\w.-]+)==[\w.+!-]+(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)")
TRAINING = "# Besides, for the extra train"


def entries(text: str) -> Iterator[str]:
    """Yield the entries of a lock, each on one line."""
    for line in re.sub(r" *\\\n *", " ", text).splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def names(text: str) -> set[str]:
    return {canonicalize_name(entry.partition("==")[0]) for entry in entries(text)}


def test_there_are_locks() -> None:
    assert {"requirements.lock", "gateway.lock", "cuda.lock"} <= {lock.name for lock in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_each_entry_is_pinned_with_a_hash(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    wrong = [entry for entry in entries(text) if not ENTRY.fullmatch(entry)]
    assert wrong == [], "each entry is NAME==VERSION with one --hash=sha256:… or more"


@pytest.mark.parametrize(
    "entry",
    [
        "numpy==2.4.6",
        "numpy --hash=sha256:" + 64 * "0",
        "numpy==2.4.6 --hash=sha256:abc",
        "-r x.lock",
    ],
)
def test_an_entry_without_version_or_hash_is_found(entry: str) -> None:
    assert not ENTRY.fullmatch(entry)


def test_torch_has_the_hash_of_each_build() -> None:
    """PyTorch's own for the CPU; those of the package index for x86_64 and arm64."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    [torch] = [entry for entry in entries(text) if entry.startswith("torch==")]
    assert torch.count("--hash=") >= 3
    [cpu] = entries((ROOT / "cpu.lock").read_text(encoding="utf-8"))
    version, _, build = cpu.partition(" --hash=")
    assert version == f"{torch.split()[0]}+cpu" and build in torch


@pytest.mark.parametrize("file", ["Makefile", "Dockerfile"])
def test_every_lock_is_installed_by_its_hashes(file: str) -> None:
    text = re.sub(r"\\\n", " ", (ROOT / file).read_text(encoding="utf-8"))
    installs = [line for line in re.split(r"\n|&&|;", text) if re.search(r" -r \S+\.lock", line)]
    assert installs
    for install in installs:
        assert "--require-hashes" in install or "$(PIP_INSTALL)" in install, install
    assert not re.search(r" -c \S+\.lock", text)


def needed(requirements: list[str], without: frozenset[str] = frozenset()) -> set[str]:
    """Return all packages that these requirements bring here, ``without`` some and theirs."""
    packages: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    todo = [Requirement(line) for line in requirements]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if name in without or (name, extra) in pairs:
                continue
            pairs.add((name, extra))
            packages.add(name)
            for line in importlib.metadata.requires(name) or ():
                other = Requirement(line)
                if other.marker is None or other.marker.evaluate({"extra": extra}):
                    todo.append(other)
    return packages


def test_the_lock_holds_all_that_is_needed_and_its_first_part_what_serving_needs() -> None:
    """It is installed without a look at what packages ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    cpu = [*project["dependencies"], *extras["cpu"]]
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    serving_part, _, _ = text.partition(TRAINING)
    cuda = names((ROOT / "cuda.lock").read_text(encoding="utf-8"))
    exclusions = frozenset({"pytest"})  # Locust names it for a plugin
    assert needed(cpu, exclusions) - cuda == names(serving_part)
    assert needed([*cpu, *extras["train"]]) - cuda == names(text)
