"""This machine's processor, as Linux tells of it."""

from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""As Linux calls them."""
_CPUINFO = Path("/proc/cpuinfo")


def processor_name(cpuinfo: Path = _CPUINFO) -> str | None:
    """None where nothing says it."""
    return _first(cpuinfo).get("model name")


def has_vnni(cpuinfo: Path = _CPUINFO) -> bool | None:
    """Whether it multiplies bytes into 32 bits: INT8 answers hold for machines that do likewise.
    None where nothing says so: another system than Linux, or another processor than x86.

    Without VNNI, ONNX Runtime multiplies uint8 by int8 on x86 by VPMADDUBSW, which adds two
    products into 16 bits and clamps what does not fit ("Method selection" in its guide to
    quantization).
    """
    flags = _first(cpuinfo).get("flags")
    return None if flags is None else bool(VNNI.intersection(flags.split()))


def _first(cpuinfo: Path) -> dict[str, str]:
    """What is said of the first processor, by name; nothing on another system than Linux."""
    try:
        said = cpuinfo.read_text(encoding="utf-8").partition("\n\n")[0]
    except OSError:
        return {}
    fields = (line.partition(":") for line in said.splitlines())
    return {name.strip(): value.strip() for name, _, value in fields}
