"""This machine's processor, as Linux tells of it, and how much of it this process may use."""

import os
from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""As Linux calls them."""
_CPUINFO = Path("/proc/cpuinfo")
_OWN_GROUPS = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def processor_name(cpuinfo: Path = _CPUINFO) -> str | None:
    """Return the processor's name; None where nothing says it."""
    return _first(cpuinfo).get("model name")


def has_vnni(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Return whether the processor multiplies bytes into 32 bits: INT8 answers hold for machines
    that do likewise. None where nothing says so: another system than Linux, or another processor
    than x86.

    Without VNNI, ONNX Runtime multiplies uint8 by int8 on x86 by VPMADDUBSW, which adds two
    products into 16 bits and clamps what does not fit ("Method selection" in its guide to
    quantization).
    """
    flags = _first(cpuinfo).get("flags")
    return None if flags is None else bool(VNNI.intersection(flags.split()))


def usable_cores(own_groups: Path = _OWN_GROUPS, groups: Path = _GROUPS) -> int:
    """Return how many cores this process may use, at least one: those of its affinity (taskset,
    a cpuset), and no more than the quota of its control group and of those above it (a container's
    limit), rounded down."""
    affine = getattr(os, "sched_getaffinity", None)
    cores = len(affine(0)) if affine else os.cpu_count() or 1
    quotas = [quota for folder in _own_folders(own_groups, groups) if (quota := _quota(folder))]
    return max(1, min([cores, *map(int, quotas)]))


def _own_folders(own_groups: Path, groups: Path) -> list[Path]:
    """Return the folders of this process's control group and of those above it, of versions 1 and
    2."""
    try:
        lines = own_groups.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = groups / controllers if controllers else groups
        own = top / path.lstrip("/")
        folders += [folder for folder in (own, *own.parents) if folder.is_relative_to(top)]
    return folders


def _quota(folder: Path) -> float | None:
    """Return how many cores' time a control group may use; None without a limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            quota, period = ((folder / name).read_text(encoding="ascii").strip() for name in names)
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max" is no number
        return None


def _first(cpuinfo: Path) -> dict[str, str]:
    """Return what is said of the first processor, by name; nothing on another system than Linux."""
    try:
        text = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
