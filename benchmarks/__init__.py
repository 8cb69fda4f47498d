"""Benchmarks and drills: programs in rooms, run as `python -m benchmarks.ROOM.PROGRAM`."""

from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
