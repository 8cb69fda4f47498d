"""Every way to write a request as a multipart form: whole ones, their parts, their charsets."""

from collections.abc import Iterator

from support.raw_http import form
from support.request_bodies import BOUNDARY, FORM, JPEG
from support.request_variant import B64, CHINESE, LINES, READ, TEXT, Variant


def part(name: str, value: bytes, *lines: str, more: str = "") -> bytes:
    """Return one part of a form behind its delimiter."""
    head = [f'Content-Disposition: form-data; name="{name}"{more}', *lines]
    return f"--{BOUNDARY}\r\n".encode() + "\r\n".join(head).encode() + b"\r\n\r\n" + value + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
FILE = part("image", JPEG, "Content-Type: image/jpeg", more='; filename="a.jpg"')
PLAIN = part("text", TEXT.encode())
WHOLE = FILE + PLAIN + END


def whole_forms() -> Iterator[Variant]:
    def variant(what: str, by: str, outcome: str, body: bytes, kind: str = FORM) -> Variant:
        return Variant(what, by, outcome, body, kind)

    cannot = "the multipart form cannot be read: "
    no_boundary = (
        "the content type multipart/form-data names no boundary: "
        "let the HTTP library set Content-Type itself"
    )
    yield variant("multipart/form-data", "browsers, curl -F, requests, httpx", READ, WHOLE)
    yield variant("boundary in quotes", ".NET", READ, WHOLE, f'{FORM[:30]}"{BOUNDARY}"')
    yield variant(
        "type in capitals", "RFC 2046", READ, WHOLE, FORM.replace("form-data", "Form-Data")
    )
    yield variant("preamble and epilogue", "RFC 2046", READ, b"hello\r\n" + WHOLE + b"bye")
    yield variant("no line break at the end", "Java, Android", READ, WHOLE[:-2])
    yield variant(
        "no boundary in the type", "fetch, axios, set by hand", no_boundary, WHOLE, FORM[:19]
    )
    yield variant("an empty boundary", "set by hand", no_boundary, WHOLE, f"{FORM[:30]}")
    yield variant(
        "another boundary than the body's",
        "set by hand",
        f"{cannot}Unexpected end of multipart stream (parser closed)",
        WHOLE,
        f"{FORM[:30]}other",
    )
    yield variant(
        "no end mark",
        "cut short",
        f"{cannot}Unexpected end of multipart stream (parser closed)",
        WHOLE[: -len(END)],
    )
    yield variant(
        "lines that end in LF alone",
        "written by hand",
        f"{cannot}Invalid line break after first boundary",
        WHOLE.replace(b"\r\n", b"\n"),
    )
    yield variant("no part", "an empty FormData", "the multipart form has no parts", END)
    yield variant(
        "more than 64 parts",
        "",
        f"{cannot}Maximum segment count exceeded",
        form(BOUNDARY, {f"f{number}": b"" for number in range(65)}),
    )
    yield variant(
        "multipart/mixed, /related",
        "mail libraries",
        "'multipart/mixed' is not read: send multipart/form-data",
        WHOLE,
        FORM.replace("form-data", "mixed"),
    )


def parts() -> Iterator[Variant]:
    def text(what: str, by: str, outcome: str, *parts: bytes) -> Variant:
        return Variant(what, by, outcome, FILE + b"".join(parts) + END, FORM)

    def line(kind: str) -> bytes:
        return part("text", TEXT.encode(), kind)

    def image(what: str, by: str, outcome: str, value: bytes, *lines: str) -> Variant:
        return Variant(what, by, outcome, part("image", value, *lines) + PLAIN + END, FORM)

    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data".encode()
    bare = TEXT.encode() + b"\r\n"
    yield text("a name without quotes", ".NET", READ, head + b"; name=text\r\n\r\n" + bare)
    yield text(
        "a file name beside the text",
        "curl -F text=@file",
        READ,
        part("text", TEXT.encode(), more='; filename="t.txt"'),
    )
    yield text(
        "`filename*=`",
        ".NET, aiohttp",
        READ,
        part("text", TEXT.encode(), more="; filename*=utf-8''t"),
    )
    yield text("Content-Length of a part", "OkHttp, Android", READ, line("Content-Length: 9"))
    yield text(
        "Content-Transfer-Encoding: 8bit, binary",
        "Java",
        READ,
        line("Content-Transfer-Encoding: 8bit"),
    )
    yield text(
        "a header in two lines", "RFC 2046", READ, head + b';\r\n name="text"\r\n\r\n' + bare
    )
    yield image(
        "Content-Transfer-Encoding: base64",
        "Python's email, mail libraries",
        READ,
        LINES.encode(),
        "Content-Transfer-Encoding: base64",
    )
    yield text(
        "Content-Transfer-Encoding: quoted-printable",
        "mail libraries",
        READ,
        part("text", b"cat=20cover", "Content-Transfer-Encoding: quoted-printable"),
    )
    yield text(
        "another Content-Transfer-Encoding",
        "",
        "the transfer encoding 'x-uuencode' of 'text' is not read: send binary",
        line("Content-Transfer-Encoding: x-uuencode"),
    )
    yield text(
        "Content-Encoding of a part",
        "aiohttp",
        "'text' is packed by 'gzip': pack the whole body, or nothing",
        line("Content-Encoding: gzip"),
    )
    yield text(
        "several files in one field (multipart/mixed)",
        "RFC 2388",
        "'text' holds several files ('multipart/mixed'): send one in each field",
        line("Content-Type: multipart/mixed; boundary=z"),
    )
    yield text(
        "a field twice", "curl -F a=1 -F a=2", "the form has the field 'text' twice", PLAIN, PLAIN
    )
    yield text(
        "a part without a name", "", "a part of the form has no name", head + b"\r\n\r\n" + bare
    )
    yield text(
        "`name*=`",
        "RFC 5987",
        'a part names its field by name*=: write name="…", in UTF-8',
        head + b"; name*=utf-8''text\r\n\r\n" + bare,
    )
    yield text(
        "a part without Content-Disposition",
        "multipart/mixed by another name",
        "the multipart form cannot be read: Missing Content-Disposition segment header",
        f"--{BOUNDARY}\r\n\r\n".encode() + bare,
    )
    yield image("base64 in a field", "JavaScript, low-code tools", READ, B64.encode())
    yield image("base64 in lines", "Android, Python's encodebytes, base64(1)", READ, LINES.encode())
    yield image("a data URI", "FileReader, canvas", READ, f"data:image/jpeg;base64,{B64}".encode())


def charsets() -> Iterator[Variant]:
    def variant(what: str, by: str, outcome: str, charset: str, text: str, raw: bytes) -> Variant:
        kind = f"Content-Type: text/plain; charset={charset}"
        return Variant(what, by, outcome, FILE + part("text", raw, kind) + END, FORM, text=text)

    def refusal(charset: str) -> str:
        return f"the charset '{charset}' of 'text' is not read: send UTF-8"

    yield variant("a text of UTF-8", "all", READ, "UTF-8", CHINESE, CHINESE.encode())
    yield variant(
        "ISO-8859-1 with ASCII bytes", "Java's default", READ, "ISO-8859-1", TEXT, TEXT.encode()
    )
    yield variant(
        "windows-1252, GBK, Shift_JIS… with ASCII bytes",
        ".NET, old systems",
        READ,
        "GBK",
        TEXT,
        TEXT.encode(),
    )
    yield variant(
        "ISO-8859-1 with other bytes",
        "Java",
        refusal("ISO-8859-1"),
        "ISO-8859-1",
        TEXT,
        "café".encode("latin-1"),
    )
    yield variant("GBK with other bytes", "", refusal("GBK"), "GBK", TEXT, CHINESE.encode("gbk"))
    yield variant("UTF-16", "", refusal("UTF-16"), "UTF-16", TEXT, TEXT.encode("utf-16"))
    yield variant("a charset that nobody knows", "", refusal("none"), "none", TEXT, TEXT.encode())
    body = FILE + part("text", TEXT.encode()) + part("_charset_", b"iso-8859-1") + END
    yield Variant("`_charset_` of RFC 7578 with ASCII bytes", "browsers", READ, body, FORM)
    chinese = FILE + part("text", CHINESE.encode("gbk")) + part("_charset_", b"GBK") + END
    yield Variant("`_charset_` with other bytes", "browsers", refusal("GBK"), chinese, FORM)
    chinese_body = FILE + part("text", CHINESE.encode("gbk")) + END
    yield Variant(
        "a charset of the whole form", "Java", refusal("GBK"), chinese_body, f"{FORM}; charset=GBK"
    )
    no_utf8 = FILE + part("text", b"\xff\xfe") + END
    yield Variant(
        "no charset, and no UTF-8",
        "",
        "text is not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        no_utf8,
        FORM,
        code="text_unreadable",
    )
