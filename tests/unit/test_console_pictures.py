"""The pictures of the console show what its templates and styles are now."""

import io

import pytest
from PIL import Image

from support.console_pictures import PAGES, PICTURES, digest_of

MOST_BYTES = 150_000


@pytest.mark.parametrize("picture", PAGES)
def test_a_picture_is_as_old_as_its_templates(picture: str) -> None:
    digest = (PICTURES / f"{picture}.sha256").read_text(encoding="utf-8").strip()
    assert digest == digest_of(picture), f"{picture}.png is old: run `make screenshots`"


def test_pictures_are_small_and_no_other_lies_there() -> None:
    assert {file.stem for file in PICTURES.iterdir()} == set(PAGES)
    for picture in PAGES:
        content = (PICTURES / f"{picture}.png").read_bytes()
        assert len(content) < MOST_BYTES, picture
        assert Image.open(io.BytesIO(content)).format == "PNG"
