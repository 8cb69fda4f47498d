"""Short clips that tests draw with PyAV."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (96, 64)
RATE = 10
CODECS = {".mp4": "mpeg4", ".mov": "mpeg4", ".mkv": "mpeg4", ".avi": "mpeg4", ".webm": "libvpx"}


def card(colour: str, size: tuple[int, int] = SIZE, text: str = "sharp edges") -> Image.Image:
    """A picture of one colour with sharp letters: a clear frame; its left upper corner is white."""
    image = Image.new("RGB", size, colour)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 4, size[1] // 4), fill="white")
    draw.text((10, size[1] // 2), text, fill="black" if colour != "black" else "white")
    return image


def plain(colour: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of one colour: black, or as a blurred one."""
    return Image.new("RGB", size, colour)


def write_video(path: Path, frames: Sequence[Image.Image]) -> Path:
    """Write frames, RATE a second, in the container that the name says."""
    import av  # here: a checkout whose .venv is older than the extra can still collect its tests

    with av.open(path, "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=RATE)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return path


def turn(path: Path) -> None:
    """Say in an mp4 file that its video is shown a quarter turn clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    matrix = start + 40  # of version 0: after times, track, duration, layer, volume (ISO 14496-12)
    one, minus = (0x10000).to_bytes(4, "big"), (0x100000000 - 0x10000).to_bytes(4, "big")
    zero, last = bytes(4), (0x40000000).to_bytes(4, "big")
    width = (SIZE[1] << 16).to_bytes(4, "big")
    values = [zero, one, zero, minus, zero, zero, width, zero, last]
    data[matrix : matrix + 36] = b"".join(values)
    path.write_bytes(data)
