"""Build the package: all folders go into one package, edarfusion, so that no installed name collides with another's.

In a clone the folders stay at the top and import each other by their own names (``from utils.maps import ...``). In the
package the same lines read ``from edarfusion.utils.maps import ...``; they are rewritten while it is built. All else
that setuptools needs is in pyproject.toml.
"""

import ast
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

NAME = "edarfusion"
SCRIPTS = ("EDARFusion_test_val", "EDARFusion_train")
FOLDERS = ("data", "evaluation", "inference", "losses", "models", "tools", "training", "utils")


def inside_the_package(source: str) -> str:
    """Rewrite the imports of a file from the project's folders to those of the package.

    Raises:
        ValueError: an import of a whole folder's module (``import utils.maps``), whose uses would have to change too.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in (*FOLDERS, *SCRIPTS):
                    raise ValueError(f"line {node.lineno}: expected `from ... import ...`, found import {alias.name}")
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in (*FOLDERS, *SCRIPTS):
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {node.module}", f"from {NAME}.{node.module}", 1)
    return "".join(lines)


class BuildOnePackage(build_py):
    """Copies the folders and both scripts into the package and rewrites their imports."""

    def run(self) -> None:
        """Build, unless the install is an editable one, which has no package of its own to build."""
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, NAME)
        for script in SCRIPTS:
            self.copy_file(f"{script}.py", str(package / f"{script}.py"))
        for path in package.rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            # Files whose source is older than what was built are not copied anew, and have been rewritten already.
            if f"from {NAME}." not in source:
                path.write_text(inside_the_package(source), encoding="utf-8")


setup(cmdclass={"build_py": BuildOnePackage})
