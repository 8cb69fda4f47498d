"""What the Dockerfile says of an image, read without a container engine."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def instructions(target: str) -> list[tuple[str, str]]:
    """(instruction, rest) of a Dockerfile target, those of the stage it is built from included."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    stages: dict[str, list[tuple[str, str]]] = {}
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            source, _, name = rest.partition(" AS ")
            lines = stages[name] = list(stages.get(source, [(word, source)]))
        else:
            lines.append((word, " ".join(rest.split())))
    return stages[target]
