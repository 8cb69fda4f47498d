"""Releases on the stack that is up, with callers: one checked from outside, and the game day."""
