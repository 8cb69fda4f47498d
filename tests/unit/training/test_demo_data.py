import json
from collections import Counter
from pathlib import Path

from PIL import Image

from vlserve.training.demo_data import SCENES, TOPICS, DemoData, write_demo_data


def lines_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_draws_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        write_demo_data(tmp_path / name, items=12, seed=seed)
    files = sorted(p.relative_to(tmp_path / "first") for p in (tmp_path / "first").rglob("*.*"))
    assert len(files) == 14

    def content(folder: str) -> list[bytes]:
        return [(tmp_path / folder / file).read_bytes() for file in files]

    assert content("first") == content("again")
    assert not set(content("first")) & set(content("other"))


def test_every_tag_is_as_frequent_and_splits_share_no_item(demo: DemoData) -> None:
    train, val = lines_of(demo.train), lines_of(demo.val)
    assert (len(train), len(val)) == (demo.train_items, demo.val_items) == (45, 9)
    assert set(Counter(line["label"] for line in train).values()) == {5}
    assert Counter(line["label"] for line in val).keys() == set(demo.labels)
    assert not {line["id"] for line in train} & {line["id"] for line in val}


def test_tags_are_all_pairs_of_scene_and_topic_so_that_neither_half_tells_them(
    demo: DemoData,
) -> None:
    assert set(demo.labels) == {f"{scene}-{topic}" for scene in SCENES for topic in TOPICS}
    for line in lines_of(demo.train):
        assert not any(scene in line["text"].lower() for scene in SCENES)


def test_titles_are_chinese_english_and_mixed(tmp_path: Path) -> None:
    data = write_demo_data(tmp_path, items=90)
    titles = [line["text"] for line in lines_of(data.train)]
    han = [any("一" <= c <= "鿿" for c in title) for title in titles]
    latin = [any("a" <= c <= "z" for c in title.lower()) for title in titles]
    both = list(zip(han, latin, strict=True))
    assert {(True, False), (False, True), (True, True)} <= set(both)
    assert any(ord(character) > 0x1F000 for title in titles for character in title)


def test_covers_are_larger_than_what_is_served(demo: DemoData) -> None:
    with Image.open(demo.train.parent / lines_of(demo.train)[0]["img"]) as image:
        assert image.format == "JPEG" and image.mode == "RGB" and min(image.size) >= 224
