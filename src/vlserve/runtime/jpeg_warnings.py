"""What libjpeg itself finds broken in a JPEG of several passes, which Pillow keeps to itself.

simplejpeg decodes with libjpeg-turbo and raises its warnings. Where it is not installed, as for an
archive that moved to another environment, nothing is found, and `jpeg` alone looks.
"""

import re

from vlserve.runtime.jpeg import Layout

try:
    import simplejpeg
except ImportError:  # an archive's runtime must not ask for more than it was packed with
    simplejpeg = None

_BROKEN = re.compile(r"premature end of data segment|bad Huffman code|Inconsistent progression")
_LEFT_OVER = re.compile(r"extraneous bytes before marker 0x(c4|da|d9)")
"""Of a pass, in front of the next one's tables or start, or of the end mark."""


def damage_told(data: bytes, layout: Layout) -> bool:
    """Return whether libjpeg warns of damage among the pixels of a JPEG in several passes."""
    if simplejpeg is None:
        return False
    try:
        simplejpeg.decode_jpeg(data, "RGB", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        warning = str(error)
        left_over = _LEFT_OVER.search(warning) and _only_of_passes(layout, data)
        return bool(left_over or _BROKEN.search(warning))
    return False


def _only_of_passes(layout: Layout, data: bytes) -> bool:
    """Return whether bytes that are left over can only be a pass's: nothing but segments stands in
    front of the first one, and no fill bytes behind the last."""
    return layout.clean_head and not data[: layout.scans[-1].end].endswith(b"\0")
