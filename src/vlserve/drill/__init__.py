"""Drills: releases and faults under load, judged by what clients saw.

On the stack that is up: one release checked from outside, and the game day. On a stack of its own:
hot updates, crashes, the split of callers, the cost of shadows (tests and benchmarks run these).
"""
