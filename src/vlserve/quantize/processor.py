"""How this machine's processor multiplies bytes: INT8 answers hold for those that do likewise.

Without VNNI, ONNX Runtime multiplies uint8 by int8 on x86 by VPMADDUBSW, which adds two products
into 16 bits and clamps what does not fit ("Method selection" in its guide to quantization).
"""

from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})
"""As Linux calls them."""


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """None where nothing says so: another system than Linux, or another processor than x86."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return None
    flags = [line.partition(":")[2].split() for line in lines if line.startswith("flags")]
    return bool(VNNI.intersection(flags[0])) if flags else None
