"""The build steps that pyproject.toml cannot say: the folders that users edit lie at the top of
the repository, and travel in the wheel inside the package, where vlserve.project finds them; and
the wheel holds a list of the components that it is installed with.
"""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("export", "handlers", "serving_config", "loadtest")
LOCK = "requirements.lock"  # archives name its sha256

COMPONENTS = "components.cdx.json"


class BuildWithFolders(build_py):
    """Copy what users edit into ``vlserve/_project``; an editable install reads the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib) / "vlserve" / "_project"
        shutil.rmtree(target, ignore_errors=True)  # an earlier build's files
        for folder in FOLDERS:
            unwanted = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(folder, target / folder, ignore=unwanted)
        shutil.copy(LOCK, target)
        (target.parent / COMPONENTS).write_bytes(self._components())

    def _components(self) -> bytes:
        """Return a CycloneDX list of the libraries that the lock names, with their hashes."""
        lists = runpy.run_path("src/vlserve/signing/components.py")
        version = self.distribution.get_version()
        main = {"type": "application", "name": "vlserve", "version": version}
        libraries = list(lists["locked_libraries"](Path(LOCK).read_text(encoding="utf-8")))
        return bytes(lists["component_list"](main, libraries, version))


setup(cmdclass={"build_py": BuildWithFolders})
