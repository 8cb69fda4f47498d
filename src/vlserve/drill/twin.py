"""Pack twins of an archive: copies under another model name, with the same graphs and a fault."""

import json
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from vlserve.exporter.pack import Member, draft_of, pack_members
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.manifest import TORCHSERVE_MANIFEST

FAULTY_TASK = Path(__file__).with_name("faulty_task.py")
_FAULT = "assets/fault.json"
_LONGEST_NAME = 63


@dataclass(frozen=True)
class Fault:
    """What goes wrong with ``share`` of the requests (0 to 1); see faulty_task."""

    kind: Literal["none", "slow", "fails", "differs", "crashes"] = "none"
    share: float = 1.0
    delay_ms: float = 0.0


def twin_name(model: str) -> str:
    """Return the model name of the twins of ``model``."""
    ending = "-drill"
    return model[: _LONGEST_NAME - len(ending)] + ending


class Original:
    """The archive that twins are made of, unpacked in a folder."""

    def __init__(self, archive: Path, folder: Path) -> None:
        """Unpack ``archive`` into ``folder``, which is empty or absent. ArchiveError."""
        self.archive = archive
        self._folder = folder
        self._manifest = unpack_archive(archive, folder)

    def pack_twin(self, out_dir: Path, version: int, fault: Fault) -> Path:
        """Write the twin with this version and fault into ``out_dir``; return its archive."""
        manifest = self._manifest
        names = set(manifest.files) - {TORCHSERVE_MANIFEST}
        members: dict[str, Member] = {name: self._folder / name for name in names}
        handler = f"handlers/{manifest.task}.py"
        members[f"handlers/drilled_{manifest.task}.py"] = members[handler]
        members[handler] = FAULTY_TASK
        members[_FAULT] = json.dumps(asdict(fault)).encode()
        draft = draft_of(manifest) | {"model": twin_name(manifest.model), "version": version}
        return pack_members(out_dir, draft, members)


def spoil(archive: Path) -> None:
    """Change a byte in the archive's largest member, as a bad disk would."""
    with zipfile.ZipFile(archive) as members:
        largest = max(members.infolist(), key=lambda member: member.file_size)
    header_bytes = 30 + len(largest.filename.encode())
    with archive.open("r+b") as file:
        file.seek(largest.header_offset + header_bytes + largest.file_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0xFF]))
