"""A drawn data set for where no real one is at hand: `write_demo_data`.

A cover shows one of three scenes (pitch, stage, kitchen) and a title is about one of three topics
(a lesson, something live, something funny), in Chinese, English or both. The tag is the pair, so
that neither half alone can tell more than one tag in three. Everything is drawn here with Pillow;
titles are text and never drawn, so no font is needed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 320, 240
TOPICS: dict[str, tuple[str, ...]] = {
    "lesson": (
        "零基础教学：{n}分钟学会",
        "手把手教你 第{n}课",
        "新手教程（{n}）{name}老师讲解",
        "{n}个入门技巧，一看就懂",
        "How to get started, lesson {n}",
        "Beginner tutorial part {n} with {name}",
        "{n} tips every beginner should learn",
        "新手教程 Tutorial Part {n}",
        "{name} 教你 how to 入门",
    ),
    "live": (
        "{city}现场直播 {year}完整版",
        "{year}全程实况｜{city}站",
        "今晚直播：{name}在{city}现场",
        "第{n}场 现场回放",
        "LIVE from {city} {year}",
        "Full live stream, {city}, night {n}",
        "Live broadcast replay with {name}",
        "{city} LIVE 现场全程",
        "{year} live 直播 第{n}场",
    ),
    "funny": (
        "笑到肚子疼的{n}个瞬间",
        "爆笑名场面合集 第{n}期",
        "这也太搞笑了吧！{name}翻车了",
        "{year}年度搞笑大赏",
        "Funniest fails of {year}",
        "Try not to laugh #{n}",
        "{name} and {n} hilarious moments",
        "爆笑 fails 合集 vol.{n}",
        "{city} 搞笑 funny moments {n}",
    ),
}
NAMES = ("小明", "阿杰", "王老师", "Lily", "Tom", "阿May")
CITIES = ("北京", "上海", "成都", "London", "Tokyo", "新加坡")
EMOJI = ("🔥", "✨", "👍", "🎉", "❤️")


@dataclass(frozen=True)
class DemoData:
    """Where the set lies. ``labels`` are its tags, sorted."""

    train: Path
    val: Path
    train_items: int
    val_items: int
    labels: tuple[str, ...]


def write_demo_data(folder: Path, *, items: int = 600, seed: int = 0) -> DemoData:
    """Write ``train.jsonl`` (five items in six), ``val.jsonl`` and ``images/`` into ``folder``.

    The same items and seed give the same files. Every tag has as many items, up to one.
    """
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    pairs = [(scene, topic) for scene in SCENES for topic in TOPICS]
    val_items = items // 6
    counts = {"train": items - val_items, "val": val_items}
    for split, count in counts.items():
        random = Random(f"{seed}/{split}")
        order = [pairs[index % len(pairs)] for index in range(count)]
        random.shuffle(order)
        lines = []
        for index, (scene, topic) in enumerate(order):
            name = f"{split}-{index:05d}"
            draw_cover(scene, random).save(images / f"{name}.jpg", quality=85)
            line = {
                "id": name,
                "img": f"images/{name}.jpg",
                "text": write_title(topic, random),
                "label": f"{scene}-{topic}",
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    return DemoData(
        train=folder / "train.jsonl",
        val=folder / "val.jsonl",
        train_items=counts["train"],
        val_items=counts["val"],
        labels=tuple(sorted(f"{scene}-{topic}" for scene, topic in pairs)),
    )


def write_title(topic: str, random: Random) -> str:
    """Return one title of a topic, now and then with an emoji."""
    title = random.choice(TOPICS[topic]).format(
        n=random.randint(1, 30),
        name=random.choice(NAMES),
        city=random.choice(CITIES),
        year=random.randint(2015, 2025),
    )
    return title + random.choice(EMOJI) if random.random() < 0.25 else title


def draw_cover(scene: str, random: Random) -> Image.Image:
    """Return one cover of a scene, RGB, WIDTH x HEIGHT, with some grain."""
    canvas = Image.new("RGB", (WIDTH, HEIGHT))
    SCENES[scene](ImageDraw.Draw(canvas, "RGBA"), random)
    grain = np.random.default_rng(random.getrandbits(32)).normal(0, 8, (HEIGHT, WIDTH, 1))
    light = random.uniform(0.8, 1.15)
    pixels: NDArray[np.float64] = np.asarray(canvas, dtype=np.float64) * light + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_pitch(draw: ImageDraw.ImageDraw, random: Random) -> None:
    green = random.randint(90, 150)
    stripe = random.randint(20, 50)
    for index, left in enumerate(range(0, WIDTH, stripe)):
        shade = green + 18 * (index % 2)
        draw.rectangle((left, 0, left + stripe, HEIGHT), fill=(shade // 3, shade, shade // 4))
    horizon = random.randint(20, 70)
    draw.rectangle((0, 0, WIDTH, horizon), fill=(110, 160, random.randint(190, 240)))
    line = random.randint(horizon + 20, HEIGHT - 40)
    draw.line((0, line, WIDTH, line), fill="white", width=3)
    x = random.randint(40, WIDTH - 40)
    draw.ellipse((x - 50, line - 25, x + 50, line + 25), outline="white", width=3)
    for _ in range(random.randint(2, 5)):
        x, y = random.randint(10, WIDTH - 10), random.randint(horizon, HEIGHT - 30)
        draw.rectangle((x - 6, y - 14, x + 6, y + 14), fill=_colour(random))
        draw.ellipse((x - 5, y - 25, x + 5, y - 15), fill=(225, 185, 150))
    radius = random.randint(10, 26)
    x, y = random.randint(radius, WIDTH - radius), random.randint(horizon, HEIGHT - radius)
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline="black")
    draw.regular_polygon((x, y, radius // 2), 5, rotation=random.randint(0, 71), fill="black")


def _draw_stage(draw: ImageDraw.ImageDraw, random: Random) -> None:
    night = random.randint(10, 45)
    draw.rectangle((0, 0, WIDTH, HEIGHT), fill=(night, night // 2, night + 20))
    for _ in range(random.randint(3, 7)):
        top, foot, spread = (
            random.randint(0, WIDTH),
            random.randint(0, WIDTH),
            random.randint(15, 45),
        )
        beam = [(top, 0), (foot - spread, HEIGHT), (foot + spread, HEIGHT)]
        draw.polygon(beam, fill=(*_colour(random), 90))
    floor = random.randint(150, 190)
    draw.rectangle((0, floor, WIDTH, HEIGHT), fill=(night, night, night))
    x = random.randint(60, WIDTH - 60)
    draw.rectangle((x - 9, floor - 60, x + 9, floor), fill=_colour(random))
    draw.ellipse((x - 10, floor - 82, x + 10, floor - 62), fill=(225, 185, 150))
    for x in range(0, WIDTH, random.randint(14, 24)):
        y = HEIGHT - random.randint(0, 25)
        draw.ellipse((x - 10, y - 12, x + 10, y + 20), fill=(5, 5, 10))


def _draw_kitchen(draw: ImageDraw.ImageDraw, random: Random) -> None:
    wood = random.randint(120, 190)
    plank = random.randint(18, 36)
    for top in range(0, HEIGHT, plank):
        shade = wood + random.randint(-14, 14)
        draw.rectangle((0, top, WIDTH, top + plank), fill=(shade, shade * 2 // 3, shade // 3))
        draw.line((0, top, WIDTH, top), fill=(wood // 2, wood // 3, wood // 5))
    x, y = random.randint(110, WIDTH - 110), random.randint(95, HEIGHT - 95)
    radius = random.randint(60, 90)
    for shrink, shade in ((0, 245), (14, 228)):
        edge = radius - shrink
        draw.ellipse((x - edge, y - edge, x + edge, y + edge), fill=(shade, shade, shade))
    for _ in range(random.randint(5, 12)):
        angle, distance = random.uniform(0, 2 * math.pi), random.uniform(0, radius * 0.6)
        bite = random.randint(6, 16)
        bx, by = x + distance * math.cos(angle), y + distance * math.sin(angle)
        draw.ellipse((bx - bite, by - bite, bx + bite, by + bite), fill=_colour(random))
    fork = x + radius + 8 if x < WIDTH // 2 else x - radius - 14
    draw.rectangle((fork, y - 60, fork + 6, y + 60), fill=(190, 190, 198))


def _colour(random: Random) -> tuple[int, int, int]:
    return (random.randint(40, 255), random.randint(40, 255), random.randint(40, 255))


SCENES: dict[str, Callable[[ImageDraw.ImageDraw, Random], None]] = {
    "football": _draw_pitch,
    "concert": _draw_stage,
    "cooking": _draw_kitchen,
}
