"""Images of files that many items name."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlserve.processor import usable_cores
from vlserve.runtime.image import decode
from vlserve.runtime.manifest import ImageInput

ImageOf = Callable[[Path], NDArray[np.float32]]
"""A file -> its image (3, height, width), the same read-only array each time. Raises what reading
the file and `decode` raise."""


@contextmanager
def decoded_once(files: Iterable[Path], image: ImageInput) -> Iterator[ImageOf]:
    """Give the images of files, each of which is read and decoded once, in threads."""
    threads = ThreadPoolExecutor(usable_cores())
    try:
        results = {file: threads.submit(_decode, file, image) for file in dict.fromkeys(files)}
        yield lambda file: results[file].result()
    finally:  # a fault or a signal ends it without what is not begun
        threads.shutdown(cancel_futures=True)


def _decode(file: Path, image: ImageInput) -> NDArray[np.float32]:
    pixels = decode(file.read_bytes(), image)
    pixels.flags.writeable = False  # items share it
    return pixels
