"""The one build step that pyproject.toml cannot say: the folders that users edit lie at the top of
the repository, and travel in the wheel inside the package. vlserve.project finds them in either.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("export", "handlers", "serving_config", "loadtest")
LOCK = "requirements.lock"  # archives name its sha256


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


setup(cmdclass={"build_py": BuildWithFolders})
