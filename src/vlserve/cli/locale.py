"""Paths are UTF-8, whatever the locale: Envoy's, Java's and our own files are."""

import os
import sys

_OUTPUT = "PYTHONIOENCODING"


def go_on_in_utf8() -> None:
    """Start this command once more, in Python's UTF-8 mode, where the locale has another encoding,
    as GBK: a folder's name would be read wrong, and could not be written into UTF-8 files. What is
    printed stays in the locale's encoding, which the terminal has."""
    if sys.flags.utf8_mode:
        os.environ.pop(_OUTPUT, None)  # of this command's own output, not of what it starts
        return
    if sys.getfilesystemencoding().lower() == "utf-8":
        return
    terminal = os.environ.get(_OUTPUT) or f"{sys.stdout.encoding}:replace"
    command = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, command, os.environ | {_OUTPUT: terminal})
