"""What a request costs whose work would grow faster than its bytes, if nothing bounded it.

    .venv/bin/python -m benchmarks.serving.hostile

Answers each request in a process of its own, by the code that serves an archive, without a server:
CPU seconds and megabytes beyond what the process had, and what is said. Ends with exit code 1 where
one costs more than MAX_CPU_S or MAX_MIB, or gets another answer than it must. Prints a table.
"""

import argparse
import base64
import io
import json
import multiprocessing
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from vlserve.cli.output import print_line, print_table
from vlserve.exporter.echo import pack_echo
from vlserve.runtime.archive import unpack_archive
from vlserve.runtime.body import read_request
from vlserve.runtime.folder import open_folder
from vlserve.runtime.types import ItemError
from vlserve_worker.bodies import BodyRefused, unwrap_body

MAX_CPU_S = 1.5
"""A quiet core; an honest photo takes 0.01."""
MAX_MIB = 600.0
MIB = 1024**2
MAX_BODY_BYTES = 32 * MIB
MAX_IMAGE_BYTES = 20 * MIB


@dataclass(frozen=True)
class Cost:
    request: str
    body_bytes: int
    cpu_s: float
    mib: float
    answer: str
    wanted: str

    @property
    def held(self) -> bool:
        """Whether it stays within the limits and gets the answer that it must get."""
        within = self.cpu_s <= MAX_CPU_S and self.mib <= MAX_MIB
        return within and self.answer == self.wanted


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="hostile.py", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--only", default="", help="requests whose names contain this")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    names = [name for name in REQUESTS if options.only in name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "archive"
        unpack_archive(pack_echo(Path(scratch), "tagger", 1), folder)
        costs = [measured(name, folder) for name in names]
    rows = [
        (
            cost.request,
            f"{cost.body_bytes / MIB:.1f}",
            f"{cost.cpu_s:.2f}",
            f"{cost.mib:.0f}",
            cost.answer,
            "held" if cost.held else f"NOT HELD: {cost.wanted}",
        )
        for cost in costs
    ]
    print_table(("request", "MiB", "CPU s", "MiB more", "answer", ""), rows)
    if options.out:
        figures = [asdict(cost) for cost in costs]
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if not all(cost.held for cost in costs):
        print_line(f"not within {MAX_CPU_S} s and {MAX_MIB:.0f} MiB, or not refused as it must be")
        sys.exit(1)


def measured(name: str, folder: Path) -> Cost:
    """Answer one of `REQUESTS` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, folder, sender))
    process.start()
    sender.close()
    try:
        cost: Cost = receiver.recv()
    except EOFError:
        cost = Cost(name, 0, 0.0, 0.0, "the process died", REQUESTS[name][1])
    process.join()
    return cost


def _answer(name: str, folder: Path, sender: Any) -> None:
    make, expected = REQUESTS[name]
    headers, body = make()
    pipeline = open_folder(folder)
    pipeline.warm_up(1)
    request: dict[str, Any] = {
        "headers": [{"name": n.encode(), "value": v.encode()} for n, v in headers.items()],
        "parameters": [{"name": "body", "contentType": "", "value": bytearray(body)}],
    }
    before, start = _peak_mib(), time.process_time()
    try:
        unwrap_body(request, MAX_BODY_BYTES)
        values = {part["name"]: part["value"] for part in request["parameters"]}
        answer = pipeline.run([read_request(values, "id")]).answers[0]
        outcome = answer.code.value if isinstance(answer, ItemError) else "answered"
    except BodyRefused as error:
        outcome = error.code
    cpu_s = time.process_time() - start
    sender.send(Cost(name, len(body), cpu_s, _peak_mib() - before, outcome, expected))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# Requests


Request = tuple[Mapping[str, str], bytes]
TYPE = "x-vlserve-content-type"
ENCODING = "x-vlserve-content-encoding"
URLENCODED = "application/x-www-form-urlencoded"


def _as_json(raw: bytes) -> Request:
    return {TYPE: "application/json"}, raw


def _as_image(image: bytes) -> Request:
    body = b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + image
    body += b'\r\n--b\r\nContent-Disposition: form-data; name="text"\r\n\r\na\r\n--b--\r\n'
    return {TYPE: "multipart/form-data; boundary=b"}, body


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _small(kind: str) -> bytes:
    return _encoded(Image.new("L", (64, 64)), kind)


def _filled(part: bytes, size: int) -> bytes:
    return part * (size // len(part))


def _jpeg_with(part: bytes, size: int = MAX_IMAGE_BYTES - MIB) -> bytes:
    jpeg = _small("JPEG")
    return jpeg[:2] + _filled(part, size) + jpeg[2:]


def _png_with(kind: bytes, content: bytes, size: int = MAX_IMAGE_BYTES - MIB) -> bytes:
    png = _small("PNG")
    chunk = struct.pack(">I", len(content)) + kind + content
    return (
        png[:33] + _filled(chunk + struct.pack(">I", zlib.crc32(kind + content)), size) + png[33:]
    )


def _gif_with(blocks: bytes) -> bytes:
    gif = _small("GIF")
    start = gif.index(b",\0\0\0\0")
    return gif[:start] + b"\x21\xfe" + blocks + b"\0" + gif[start:]


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _plain(kind: str, side: int, mode: str = "RGB", **options: Any) -> bytes:
    return _encoded(Image.new(mode, (side, side)), kind, **options)


def _scans(side: int, count: int) -> bytes:
    raw = _plain("JPEG", side, "L", progressive=True)
    scan = raw[raw.rindex(b"\xff\xda") : -2]
    return raw[:-2] + scan * count + raw[-2:]


def _names(count: int) -> bytes:
    return b"{" + b", ".join([b'"%d": 0' % name for name in range(count)]) + b"}"


def _text(title: str) -> bytes:
    image = base64.b64encode(_small("JPEG")).decode()
    return json.dumps({"image": image, "text": title}).encode()


def _packed(body: bytes) -> Request:
    return {TYPE: "application/json", ENCODING: "gzip"}, zlib.compress(body, wbits=31)


def _in_streams(size: int) -> Request:
    """A body of many gzip streams, each of nothing."""
    return {TYPE: "application/json", ENCODING: "gzip"}, _filled(zlib.compress(b"", wbits=31), size)


COMPLEX, TOO_LARGE = "image_too_complex", "image_too_large"
REQUESTS: Mapping[str, tuple[Callable[[], Request], str]] = {
    "jpeg: tiny Exif segments": (
        lambda: _as_image(_jpeg_with(_segment(0xE1, b"Exif\0\0x"))),
        COMPLEX,
    ),
    "jpeg: Exif segments of 64 KB": (
        lambda: _as_image(_jpeg_with(_segment(0xE1, b"Exif\0\0" + bytes(65_000)))),
        COMPLEX,
    ),
    "jpeg: comments": (lambda: _as_image(_jpeg_with(_segment(0xFE, b"x"))), COMPLEX),
    "jpeg: fill bytes": (lambda: _as_image(_jpeg_with(b"\xff")), COMPLEX),
    "jpeg: 100 scans of 49 MP": (lambda: _as_image(_scans(7000, 90)), TOO_LARGE),
    "jpeg: 20 scans of 49 MP": (lambda: _as_image(_scans(7000, 14)), TOO_LARGE),
    "jpeg: 100 scans of 5 MP": (lambda: _as_image(_scans(2236, 90)), TOO_LARGE),
    "jpeg: progressive, of 49 MP": (lambda: _as_image(_scans(7000, 0)), "answered"),
    "jpeg: progressive, of 1.2 MP": (lambda: _as_image(_scans(1100, 60)), "image_damaged"),
    "jpeg: 49 MP": (lambda: _as_image(_plain("JPEG", 7000)), "answered"),
    "png: empty chunks": (lambda: _as_image(_png_with(b"teST", b"")), COMPLEX),
    "png: empty pixels": (lambda: _as_image(_png_with(b"IDAT", b"")), COMPLEX),
    "png: texts": (lambda: _as_image(_png_with(b"tEXt", b"a\0b")), COMPLEX),
    "png: 49 MP": (lambda: _as_image(_plain("PNG", 7000)), TOO_LARGE),
    "png: 29 MP with alpha": (lambda: _as_image(_plain("PNG", 5400, "RGBA")), "answered"),
    "gif: a comment of 19 MB": (
        lambda: _as_image(_gif_with(_filled(b"\xff" + b"c" * 255, MAX_IMAGE_BYTES - MIB))),
        COMPLEX,
    ),
    "gif: 19 MP": (lambda: _as_image(_plain("GIF", 4400, "L")), "answered"),
    "webp: 49 MP in 34 bytes and some": (
        lambda: _as_image(_plain("WEBP", 7000, lossless=True)),
        TOO_LARGE,
    ),
    "webp: 19 MP": (lambda: _as_image(_plain("WEBP", 4400, lossless=True)), "answered"),
    "json: 3 million names": (lambda: _as_json(_names(3_000_000)), "body_too_complex"),
    "json: 400,000 names": (lambda: _as_json(_names(400_000)), "body_too_complex"),
    "json: 15 million values": (
        lambda: _as_json(b'{"text": [' + b"1," * 15_000_000 + b"1]}"),
        "body_too_complex",
    ),
    "json: a million levels": (lambda: _as_json(b"[" * 1_000_000), "body_too_complex"),
    "json: 31 MB of text": (lambda: _as_json(_text("a" * 31 * MIB)), "text_too_long"),
    "json: 64 KB of combining marks": (
        lambda: _as_json(_text("a" + "\u0300\u0316" * 16_000)),
        "answered",
    ),
    "form: 10 million percent signs": (
        lambda: ({TYPE: URLENCODED}, b"text=" + b"%41" * 10_000_000),
        "body_too_complex",
    ),
    "form: 32 MB of bytes beside an escape": (
        lambda: ({TYPE: URLENCODED}, b"text=%41" + b"a\xff" * 16_700_000),
        "text_unreadable",
    ),
    "form: 31 MB of boundaries": (
        lambda: (
            {TYPE: "multipart/form-data; boundary=b"},
            _filled(b"--b\r\nA: b\r\n\r\n\r\n", 31 * MIB),
        ),
        "body_unreadable",
    ),
    "gzip: 256 MiB of zeros": (lambda: _packed(bytes(256 * MIB)), "body_too_large"),
    "gzip: 31 MB of empty streams": (lambda: _in_streams(31 * MIB), "body_too_complex"),
}


if __name__ == "__main__":
    main()
