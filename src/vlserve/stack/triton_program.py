"""Triton's server: where it is installed, and whether it can run on this machine.

It is that of the wheel nvidia-pytriton (tritonserver 2.51), of whose Python code nothing is used.
"""

import importlib.util
import platform
import sys
import sysconfig
from pathlib import Path

from vlserve.errors import StackError
from vlserve.stack.verified_binary import verified_binary

WHEEL = "nvidia-pytriton==0.7.0"
SHA256 = {
    "x86_64": "01f1d4a777fea48f8e62a3df0403bcbd858c7a0be203e032a795032555f3e3f4",
    "aarch64": "0d5609409576e3587df9e351c22ae3d2d42425b8cdb76e3b4e27e50d17f99be2",
}
"""Of bin/tritonserver in that wheel, by machine."""
_GLIBC = (2, 35)


def triton_home() -> Path:
    """Return the folder of the server and its backends.

    Raises:
        StackError: the wheel is not installed.
    """
    spec = importlib.util.find_spec("pytriton")  # importing it would ask for numpy 1
    if spec is None or spec.origin is None:
        raise StackError(f"Triton is not installed: pip install --no-deps {WHEEL}")
    return Path(spec.origin).parent / "tritonserver"


def python_library_folder() -> Path:
    """Return the folder of the shared library of this Python, which Triton's workers load."""
    return Path(str(sysconfig.get_config_var("LIBDIR")))


def why_no_wheel_fits() -> str | None:
    """Return why the wheel cannot be installed here, in one line; None where it can."""
    if sys.platform != "linux" or platform.machine() not in SHA256:
        return f"it runs on Linux on {' and '.join(SHA256)} alone"
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < _GLIBC:
        return f"it needs glibc {_GLIBC[0]}.{_GLIBC[1]}, this system has {name} {version}".rstrip()
    return None


def why_triton_cannot_run() -> str | None:
    """Return why Triton cannot run here, in one line; None where it can."""
    if reason := why_no_wheel_fits():
        return reason
    try:
        home = triton_home()
    except StackError as error:
        return str(error)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not (home / "python_backend_stubs" / python).is_dir():
        return f"it has no workers for Python {python}"
    library = str(sysconfig.get_config_var("INSTSONAME"))
    if not library.startswith("libpython") or ".so" not in library:
        return f"{sys.executable} was built without a shared library (--enable-shared)"
    if not (python_library_folder() / library).is_file():
        return (
            f"{python_library_folder() / library} is missing: on Debian and Ubuntu, "
            f"apt install libpython{python}"
        )
    return None


def verified_triton_home() -> Path:
    """Return the folder of the server, once the sha256 of its binary is the packaged one.

    Raises:
        StackError: the binary is missing, is another one, or is of a machine without a known hash.
    """
    home = triton_home()
    reinstall = f"pip install --force-reinstall --no-deps {WHEEL}"
    verified_binary(home / "bin" / "tritonserver", "tritonserver", SHA256, reinstall)
    return home


if __name__ == "__main__":  # asked by the Makefile before it installs triton.lock
    if reason := why_no_wheel_fits():
        sys.exit(f"Triton is not installed: {reason}; TorchServe serves without it")
