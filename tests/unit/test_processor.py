"""What Linux tells of the processor, and where it tells nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlserve.processor import has_vnni, processor_name, usable_cores

X86 = (
    "processor : 0\nmodel name\t: Fast: 2 GHz\nflags\t\t: fpu avx2 avx512f{}\n\n"
    "processor : 1\nmodel name\t: Other\nflags\t\t: fpu avx2 avx_vnni\n"
)
ARM = "processor : 0\nFeatures : fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("text", "vnni", "name"),
    [
        (X86.format(" avx512_vnni"), True, "Fast: 2 GHz"),
        (X86.format(" avx_vnni"), True, "Fast: 2 GHz"),
        (X86.format(""), False, "Fast: 2 GHz"),
        (ARM, None, None),
    ],
)
def test_the_first_processor_counts(
    text: str, vnni: bool | None, name: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(text, encoding="utf-8")
    assert (has_vnni(file), processor_name(file)) == (vnni, name)


def test_another_system_says_nothing(tmp_path: Path) -> None:
    assert has_vnni(tmp_path / "missing") is processor_name(tmp_path / "missing") is None


def groups(folder: Path, own: str, files: dict[str, str]) -> dict[str, Path]:
    """A /proc/self/cgroup and a /sys/fs/cgroup."""
    (folder / "own").write_text(own, encoding="utf-8")
    for name, content in files.items():
        (folder / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "groups" / name).write_text(content, encoding="utf-8")
    return {"own_groups": folder / "own", "groups": folder / "groups"}


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {}, 48),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 48),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "nonsense"}, 48),
        (
            "5:cpu:/docker/x\n4:memory:/\n",
            {
                "cpu/docker/x/cpu.cfs_quota_us": "400000\n",
                "cpu/docker/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            "5:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            48,
        ),
    ],
)
def test_a_containers_limit_counts(
    own: str, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(48)))
    assert usable_cores(**groups(tmp_path, own, files)) == cores


def test_affinity_counts() -> None:
    code = "import os; from vlserve.processor import usable_cores as n; print(n())"
    first = min(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, {{{first}}}); {code}"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
    )
    assert run.stdout == "1\n"
    assert usable_cores(Path("/nowhere"), Path("/nowhere")) == len(os.sched_getaffinity(0))
