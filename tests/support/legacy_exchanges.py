"""What clients send to the archives of legacy_archives.py, form by form."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from support import legacy_archives as legacy

ENVELOPES = {"Json": "json", "Kserve": "kserve"}
"""Former name -> the envelope that its server is told of."""

FORM = "multipart/form-data; boundary=edge"


@dataclass(frozen=True)
class Call:
    """``model``: the former name. ``tail``: of the path, after the name."""

    model: str
    body: bytes
    content_type: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    tail: str = ""

    @property
    def all_headers(self) -> dict[str, str]:
        """Return the headers with the type, where it has one."""
        type_header = {"content-type": self.content_type} if self.content_type is not None else {}
        return type_header | self.headers

    @property
    def id(self) -> str:
        """Return what a test calls it."""
        return f"{self.model}-{self.content_type}-{self.body[:20]!r}{self.tail}"


def part(name: str, content: bytes, kind: str | None = None, file: str | None = None) -> bytes:
    """Return one part of a form of the boundary in FORM."""
    file_name = f'; filename="{file}"' if file else ""
    type_line = f"Content-Type: {kind}\r\n" if kind else ""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"{file_name}\r\n{type_line}\r\n'
    return head.encode() + content + b"\r\n"


END = b"--edge--\r\n"


def legacy_archives(folder: Path) -> dict[str, Path]:
    """Write the archives that need no weights; former name -> file."""
    kinds = {
        "Asserts": ("service.py", legacy.ASSERTS_ITS_BATCH),
        "Entry": ("score:run", legacy.ENTRY_FUNCTION),
        "Echoes": ("echoes.py", legacy.ECHOES),
        "Results": ("results.py", legacy.RESULTS),
        "Misbehaves": ("misbehaves.py", legacy.MISBEHAVES),
        "Parts": ("parts.py", legacy.PARTS),
        "First": ("first.py", legacy.FIRST_ALONE),
        "Describes": ("describes.py", legacy.DESCRIBES),
    }
    archives = {
        name: legacy.write_legacy(folder / f"{name}.mar", handler, source, modelName=name)
        for name, (handler, source) in kinds.items()
    }
    archives |= {
        envelope.title(): legacy.write_legacy(
            folder / f"{envelope.title()}.mar",
            "instances.py",
            legacy.INSTANCES,
            modelName=envelope.title(),
        )
        for envelope in ENVELOPES.values()
    }
    archives["Scores"] = legacy.write_legacy(
        folder / "Scores.mar",
        "scores.py",
        legacy.BASE_HANDLER,
        {
            "linear.pt": legacy.torchscript(),
            "index_to_name.json": json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"]}),
        },
        modelName="Scores",
        serializedFile="linear.pt",
    )
    return archives


PROBES = {
    "Scores": "[1.0, 2.0, 3.0]",
    "Results": '"str"',
    "Json": '{"instances": [[1, 2], [3]]}',
    "Kserve": '{"instances": [[1, 2], [3]]}',
}
"""Former name -> the body of its probe; of others an object."""

_LISTS = b'{"instances": [[1, 2], [3], "abc"]}'
_BASE64 = b'{"instances": [{"b64": "AAEC"}, {"a": {"b64": "AA=="}, "b": 1}]}'

CALLS = (
    Call("Asserts", b'{"a": 1, "b": [1]}', "application/json"),
    Call("Asserts", b'{"a": 1}'),
    Call("Asserts", b"{", "application/json"),
    Call("Entry", b'{"a": NaN, "a": 2}', "application/json; charset=utf-8"),
    Call("Entry", "héllo".encode(), "text/plain"),
    Call("Entry", b"\xff\xfe", "text/plain"),
    Call("Entry", b"words", "application/x-words"),
    Call("Echoes", b'{"text": "a"}', "application/x-www-form-urlencoded"),
    Call("Echoes", b"a=1&b=%C3%A9+x&a=2", "application/x-www-form-urlencoded"),
    Call("Echoes", part("data", b'{"x": 1}', "application/json", "a.json") + END, FORM),
    Call("Echoes", part("data", b"caf\xc3\xa9", "text/plain", "a.txt") + END, FORM),
    Call("Echoes", part("data", b"\x89PNG", "image/png", "a.png") + END, FORM),
    Call("Echoes", part("data", b"\x00\x01", None, "a.bin") + END, FORM),
    Call("Echoes", part("text", b"words") + part("threshold", b"0.5") + END, FORM),
    Call("Echoes", part("d", b"1", None, "a") + part("d", b"2", None, "b") + END, FORM),
    Call("Echoes", b"[1]", "application/json", {"x-team": "blue", "Accept": "*/*"}),
    Call("Echoes", b"[1]", "application/json", {"explain": "True"}),
    Call("Echoes", b"[1]", "application/json", tail="/1.0"),
    Call("Echoes", b"[1]", "application/json", tail="/1.0/a/b"),
    *(
        Call("Results", json.dumps(word).encode(), "application/json")
        for word in (
            *("str", "bytes", "list", "number", "null", "nan", "tensor", "dict", "numpy"),
            *("bytearray", "empty"),
        )
    ),
    Call("Misbehaves", b"hello", "text/plain"),
    Call("Misbehaves", b"raise", "text/plain"),
    Call("Misbehaves", b"teapot", "text/plain"),
    Call("Misbehaves", b"typed", "text/plain"),
    Call("First", b"alone", "text/plain"),
    Call("First", b"[1, 2]", "application/json"),
    Call("Describes", b"words", "text/plain"),
    Call("Describes", b"words", "text/plain", {"describe": "True"}),
    *(
        Call(name, body, "application/json")
        for name in ("Json", "Kserve")
        for body in (_LISTS, _BASE64, b'{"other": 1}')
    ),
    Call("Parts", part("img1", legacy.picture(), "image/png", "a.png") + END, FORM),
    Call("Scores", b"[0.1, 0.2, 0.3]", "application/json"),
    Call("Scores", b'{"values": [0.1, 0.2, 0.3]}', "application/json"),
    Call("Scores", part("data", b"[3, 2, 1]", "application/json", "a.json") + END, FORM),
)
