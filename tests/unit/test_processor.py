"""What Linux tells of the processor, and where it tells nothing."""

from pathlib import Path

import pytest

from vlserve.processor import has_vnni, processor_name

X86 = (
    "processor : 0\nmodel name\t: Fast: 2 GHz\nflags\t\t: fpu avx2 avx512f{}\n\n"
    "processor : 1\nmodel name\t: Other\nflags\t\t: fpu avx2 avx_vnni\n"
)
ARM = "processor : 0\nFeatures : fp asimd asimddp\n"


@pytest.mark.parametrize(
    ("said", "vnni", "name"),
    [
        (X86.format(" avx512_vnni"), True, "Fast: 2 GHz"),
        (X86.format(" avx_vnni"), True, "Fast: 2 GHz"),
        (X86.format(""), False, "Fast: 2 GHz"),
        (ARM, None, None),
    ],
)
def test_the_first_processor_counts(
    said: str, vnni: bool | None, name: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(said)
    assert (has_vnni(file), processor_name(file)) == (vnni, name)


def test_another_system_says_nothing(tmp_path: Path) -> None:
    assert has_vnni(tmp_path / "missing") is processor_name(tmp_path / "missing") is None
