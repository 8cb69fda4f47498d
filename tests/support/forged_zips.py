"""Archives whose zip two programs read differently.

TorchServe reads a zip from its front, by the headers in front of the members; Python by the
directory at its end. Each archive here is a good one but for one thing that only one of them sees.
"""

import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping

from support.archive_members import Members
from support.member_edits import ENGINE_MANIFEST, GRAPH, TASK, BadArchive, listed

HIDDEN = "sitecustomize.py"
HIDDEN_CODE = b"import os\n"
HEADER = b"PK\x03\x04"
ENTRY = b"PK\x01\x02"
END = b"PK\x05\x06"


def stored(members: Mapping[str, bytes]) -> bytes:
    """As `vlserve export` packs them: sorted, and stored as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in sorted(members.items()):
            archive.writestr(name, content)
    return file.getvalue()


def inserted(raw: bytes, at: int, extra: bytes, first_entry: int = 0) -> bytes:
    """The zip with ``extra`` put in at a byte in front of its directory, whose offsets are mended:
    of the entries from ``first_entry`` on."""
    end = raw.rindex(END)
    (start,) = struct.unpack_from("<L", raw, end + 16)
    result = bytearray(raw[:at] + extra + raw[at:])
    struct.pack_into("<L", result, end + len(extra) + 16, start + len(extra))
    entry, number = start + len(extra), 0
    while result[entry : entry + 4] == ENTRY:
        (offset,) = struct.unpack_from("<L", result, entry + 42)
        if offset >= at or number >= first_entry > 0:
            struct.pack_into("<L", result, entry + 42, offset + len(extra))
        lengths = struct.unpack_from("<3H", result, entry + 28)
        entry, number = entry + 46 + sum(lengths), number + 1
    return bytes(result)


def local_member(name: str, content: bytes) -> bytes:
    """A member as it stands in front of a directory, without an entry there."""
    sizes = (zlib.crc32(content), len(content), len(content))
    head = struct.pack("<4s5H3L2H", HEADER, 20, 0, 0, 0, 33, *sizes, len(name), 0)
    return head + name.encode() + content


def directory_of(raw: bytes) -> int:
    (start,) = struct.unpack_from("<L", raw, raw.rindex(END) + 16)
    return int(start)


def header_of(raw: bytes, name: str) -> int:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        return archive.getinfo(name).header_offset


def hidden_behind_the_others(members: Members, code: bytes = HIDDEN_CODE) -> bytes:
    raw = stored(members)
    return inserted(raw, directory_of(raw), local_member(HIDDEN, code))


def hidden_in_front(members: Members, code: bytes = HIDDEN_CODE) -> bytes:
    return inserted(stored(members), 0, local_member(HIDDEN, code))


def hidden_behind_a_deflated_member(members: Members, code: bytes = HIDDEN_CODE) -> bytes:
    """Where the compressed bytes end, some go on, Python where the directory says."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = members["vlserve/__init__.py"]
    stream = packer.compress(content) + packer.flush() + local_member(HIDDEN, code)
    return _with_packed("vlserve/__init__.py", members, stream, len(content))


def _with_packed(name: str, members: Members, stream: bytes, size_bytes: int) -> bytes:
    """A good archive in which one member holds ``stream`` as its deflated bytes."""
    crc = zlib.crc32(members[name])
    raw = stored(members | {name: stream})
    result = bytearray(raw)
    header = header_of(raw, name)
    entry = raw.index(name.encode(), directory_of(raw)) - 46
    for place, method_at, crc_at in ((header, 8, 14), (entry, 10, 16)):
        struct.pack_into("<H", result, place + method_at, zipfile.ZIP_DEFLATED)
        struct.pack_into("<3L", result, place + crc_at, crc, len(stream), size_bytes)
    return bytes(result)


def hidden_within_a_stored_member(members: Members, code: bytes = HIDDEN_CODE) -> bytes:
    """The header of the last member says a smaller size, which Java believes: what follows is the
    next member to it. To Python it is all one member, of the bytes that the manifest lists."""
    more = members | {"zzz.txt": b"seen by all\n" + local_member(HIDDEN, code)}
    raw = bytearray(stored(_listed_members(more)))
    header = header_of(raw, "zzz.txt")
    short = b"seen by all\n"
    struct.pack_into("<3L", raw, header + 14, zlib.crc32(short), len(short), len(short))
    return bytes(raw)


def hidden_by_a_zip64_field(members: Members, code: bytes = HIDDEN_CODE) -> bytes:
    """As above; the smaller size stands in a zip64 field, which some take whatever else is said."""
    short = b"seen by all\n"
    more = members | {"zzz.txt": short + local_member(HIDDEN, code)}
    raw = stored(_listed_members(more))
    header = header_of(raw, "zzz.txt")
    field = struct.pack("<2H2Q", 1, 16, len(short), len(short))
    result = bytearray(inserted(raw, header + 30 + len("zzz.txt"), field))
    struct.pack_into("<H", result, header + 28, len(field))
    return bytes(result)


def _listed_members(members: Members) -> Members:
    with zipfile.ZipFile(io.BytesIO(listed(members))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _another_name_in_front(members: Members) -> bytes:
    raw = bytearray(stored(members))
    at = header_of(raw, TASK) + 30
    raw[at : at + len(TASK)] = b"handlers/tap.py"
    return bytes(raw)


def _two_entries_for_one_header(members: Members) -> bytes:
    raw = stored(members)
    start = directory_of(raw)
    first = raw[start : raw.index(ENTRY, start + 4)]
    name = first[46:]
    second = first[:46] + name[:-1] + b"X"
    end = bytearray(raw[raw.rindex(END) :])
    count, size_bytes = struct.unpack_from("<HL", end, 10)
    struct.pack_into("<2HL", end, 8, count + 1, count + 1, size_bytes + len(second))
    return raw[:start] + first + second + raw[start + len(first) : raw.rindex(END)] + bytes(end)


def _fewer_told_of(members: Members) -> bytes:
    raw = bytearray(stored(members))
    end = raw.rindex(END)
    (count,) = struct.unpack_from("<H", raw, end + 10)
    struct.pack_into("<2H", raw, end + 8, count - 1, count - 1)
    return bytes(raw)


def _with_comment(members: Members) -> bytes:
    file = io.BytesIO(stored(members))
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"hello"
    return file.getvalue()


def _streamed(members: Members) -> bytes:
    """As a program writes that cannot go back: the sizes stand behind the bytes."""

    class Pipe(io.BytesIO):
        def tell(self) -> int:
            raise OSError("a pipe")

    file = Pipe()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _with_extra(field: bytes) -> Callable[[Members], bytes]:
    def make(members: Members) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.extra = field if name == GRAPH else b""
                archive.writestr(info, content)
        return file.getvalue()

    return make


def also_named(*names: str) -> Callable[[Members], bytes]:
    return lambda members: listed(members | dict.fromkeys(names, b"x"))


def _old_name(members: Members) -> bytes:
    """A name that is not said to be UTF-8, which Python and Java then read differently."""
    raw = bytearray(listed(members | {"assets/é.txt": b"x"}))
    name = "assets/é.txt".encode()
    at = raw.index(name)
    struct.pack_into("<H", raw, at - 30 + 6, 0)
    struct.pack_into("<H", raw, raw.index(name, at + 1) - 46 + 8, 0)
    return bytes(raw)


def _cut_name(members: Members) -> bytes:
    """Python ends a name at a NUL, Java does not."""
    raw = bytearray(listed(members | {"assets/a.txt_b": b"x"}))
    for at in (raw.index(b"assets/a.txt_b"), raw.rindex(b"assets/a.txt_b")):
        raw[at + 12] = 0
    return bytes(raw)


def engine_manifest(raw: bytes) -> Callable[[Members], bytes]:
    return lambda members: listed(members | {ENGINE_MANIFEST: raw})


def _engine_manifest_saying(**changes: object) -> Callable[[Members], bytes]:
    """TorchServe's manifest says this beside the model."""

    def make(members: Members) -> bytes:
        manifest = json.loads(members[ENGINE_MANIFEST]) | changes
        return listed(members | {ENGINE_MANIFEST: json.dumps(manifest).encode()})

    return make


def _engine_manifest_in(encoding: str) -> Callable[[Members], bytes]:
    return lambda members: listed(
        members | {ENGINE_MANIFEST: members[ENGINE_MANIFEST].decode().encode(encoding)}
    )


def _of_kind(kind: int) -> Callable[[Members], bytes]:
    """The directory says that a member is a pipe, a device, …"""

    def make(members: Members) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                info = zipfile.ZipInfo(name)
                info.external_attr = ((kind if name == GRAPH else stat.S_IFREG) | 0o644) << 16
                archive.writestr(info, content)
        return file.getvalue()

    return make


def _said_twice(members: Members) -> bytes:
    model = json.loads(members[ENGINE_MANIFEST])["model"]
    other_model = model | {"handler": "other.py"}
    raw = f'{{"model": {json.dumps(other_model)}, "model": {json.dumps(model)}}}'.encode()
    return listed(members | {ENGINE_MANIFEST: raw})


def _more_for_torchserve(members: Members) -> bytes:
    manifest = json.loads(members[ENGINE_MANIFEST])
    manifest["model"]["requirementsFile"] = GRAPH
    return listed(members | {ENGINE_MANIFEST: json.dumps(manifest).encode()})


HIDING = [hidden_behind_the_others, hidden_in_front, hidden_within_a_stored_member]
"""By which TorchServe on today's Java runs a member that the directory does not list."""
TAMPER = "archive_tampered"

FORGED = [
    BadArchive(
        "hidden-behind", TAMPER, "a member 'sitecustomize.py' .*not", hidden_behind_the_others
    ),
    BadArchive("hidden-in-front", TAMPER, "a member 'sitecustomize.py' .*not", hidden_in_front),
    BadArchive(
        "hidden-in-slack", TAMPER, "__init__.py ends before", hidden_behind_a_deflated_member
    ),
    BadArchive("hidden-within", TAMPER, "zzz.txt has the checksum", hidden_within_a_stored_member),
    BadArchive(
        "hidden-by-zip64", TAMPER, "zzz.txt has two sizes in its header", hidden_by_a_zip64_field
    ),
    BadArchive(
        "another-name-in-front",
        TAMPER,
        "the name 'handlers/tap.py' in its header",
        _another_name_in_front,
    ),
    BadArchive("one-header-for-two", TAMPER, "overlap", _two_entries_for_one_header),
    BadArchive("an-end-that-lies", TAMPER, "its end tells of", _fewer_told_of),
    BadArchive(
        "bytes-before", TAMPER, "5 bytes at byte 0", lambda m: inserted(stored(m), 0, b"hello")
    ),
    BadArchive("bytes-before-unsaid", TAMPER, "its end tells", lambda m: b"hello" + stored(m)),
    BadArchive("bytes-after", TAMPER, "bytes follow the end", lambda m: stored(m) + b"hello"),
    BadArchive("a-comment", TAMPER, "bytes follow the end", _with_comment),
    BadArchive("sizes-behind", TAMPER, "has its size behind its bytes", _streamed),
    BadArchive(
        "a-unicode-path",
        TAMPER,
        "has an extra field 0x7075",
        _with_extra(
            struct.pack("<2HBL", 0x7075, 5 + 8, 1, zlib.crc32(GRAPH.encode())) + b"other.py"
        ),
    ),
    BadArchive(
        "an-extra-that-is-cut", "archive_unreadable", "xtra field", _with_extra(b"UT\x09\x00\x01")
    ),
    BadArchive("a-name-of-no-coding", TAMPER, "has two names", _old_name),
    BadArchive("a-name-with-a-nul", TAMPER, "has two names", _cut_name),
    BadArchive("case", TAMPER, "one file on some", also_named("assets/A.txt", "assets/a.txt")),
    BadArchive("accents", TAMPER, "one file on some", also_named("assets/\xe9", "assets/e\u0301")),
    BadArchive("a-dot", TAMPER, "plain path", also_named("./handlers/tag.py")),
    BadArchive("two-slashes", TAMPER, "plain path", also_named("handlers//tag.py")),
    BadArchive("a-folder", TAMPER, "is a folder", also_named("assets/more/")),
    BadArchive(
        "a-file-as-folder", TAMPER, "and the folder of", also_named("assets/b", "assets/B/c")
    ),
    BadArchive("a-pickle-in-capitals", TAMPER, "can run code", also_named("assets/v.PKL")),
    BadArchive(
        "torchserve-told-more", "manifest_invalid", "requirementsFile", _more_for_torchserve
    ),
    BadArchive("torchserve-told-twice", "manifest_invalid", "is there twice", _said_twice),
    BadArchive(
        "torchserve-told-a-runtime",
        "manifest_invalid",
        "runtime is 'LSP', not 'python'",
        _engine_manifest_saying(runtime="LSP"),
    ),
    BadArchive(
        "torchserve-told-a-workflow",
        "manifest_invalid",
        "workflow is not for it to say",
        _engine_manifest_saying(workflow={"workflowName": "x"}),
    ),
    BadArchive(
        "torchserves-manifest-in-utf-16",
        "manifest_invalid",
        "MAR-INF.*cannot be read",
        _engine_manifest_in("utf-16"),
    ),
    BadArchive(
        "torchserves-manifest-with-a-bom",
        "manifest_invalid",
        "MAR-INF.*cannot be read",
        _engine_manifest_in("utf-8-sig"),
    ),
    BadArchive("a-pipe", TAMPER, "is no regular file", _of_kind(stat.S_IFIFO)),
    BadArchive("a-device", TAMPER, "is no regular file", _of_kind(stat.S_IFCHR)),
    BadArchive(
        "torchserves-manifest-deep",
        "manifest_invalid",
        "MAR-INF.*cannot be read",
        engine_manifest(b'{"model": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"),
    ),
]


def deflated(members: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()
