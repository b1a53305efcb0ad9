"""setup.py: one package whose imports do not collide with anything, built and used from another folder."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.examples import ONE_THREAD, REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the wheel holds, unpacked; as installed, but without the packages it needs."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("package")
    # Building leaves files beside the sources.
    ignored = shutil.ignore_patterns(".git", "__pycache__", "tests", "docs", "runs", "*.png", "shared")

    def ignore(place: str, names: list[str]) -> set[str]:
        """At the top, results are those of runs."""
        runs = {name for name in names if name.startswith("results")} if Path(place) == REPOSITORY else set()
        return ignored(place, names) | runs

    shutil.copytree(REPOSITORY, folder / "clone", ignore=ignore)
    shutil.copytree(REPOSITORY / "data" / "sample", folder / "clone" / "data" / "sample", dirs_exist_ok=True)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q",
             "-w", str(folder / "wheels"), "."]  # fmt: skip
    subprocess.run(build, cwd=folder / "clone", check=True, capture_output=True)
    (wheel,) = (folder / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess:
    """Run Python in another folder, in which a module is called as one of the project's folders is."""
    (folder / "utils.py").write_text("raise ImportError('the wrong utils')")
    environment = ONE_THREAD | {"PYTHONPATH": os.pathsep.join([str(installed), str(folder)])}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )


def test_there_is_one_name_and_no_import_of_another(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    assert names == {"edarfusion"}
    for path in (installed / "edarfusion").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "\nfrom utils" not in text and "\n    from utils" not in text, path


def test_a_pair_is_fused_from_any_folder(installed: Path, tmp_path: Path) -> None:
    program = """
import torch
from edarfusion import DEFAULT_CHECKPOINT, SAMPLE_ROOT, PairFuser, load_checkpoint, read_image
checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
fuse = PairFuser(checkpoint.model, torch.device("cpu"), passes=1)
images = [read_image(SAMPLE_ROOT / "CT" / role / "simulated_070.png") for role in ("fixed", "moving")]
print(fuse(*images).fused.shape)
"""
    assert run(installed, tmp_path, "-c", program).stdout.strip() == "(256, 256)"


def test_the_commands_are_there(installed: Path, tmp_path: Path) -> None:
    (points,) = installed.glob("*.dist-info/entry_points.txt")
    lines = [line for line in points.read_text().splitlines() if "=" in line]
    assert [line.split(" = ")[0] for line in lines] == ["edarfusion-fuse", "edarfusion-train"]
    for line in lines:
        module, function = line.split(" = ")[1].split(":")
        program = f"import sys; from {module} import {function}; sys.argv = ['x', '--help']; {function}()"
        actual = run(installed, tmp_path, "-c", program)
        assert "--modality" in actual.stdout


def test_an_import_that_could_not_be_rewritten_is_an_error() -> None:
    setuptools = pytest.importorskip("setuptools", minversion="77")
    source = (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    spec = importlib.util.spec_from_loader("edarfusion_setup", loader=None)
    module = importlib.util.module_from_spec(spec)
    assert setuptools
    exec(source.replace("setup(cmdclass", "dict(cmdclass"), module.__dict__)
    rewritten = module.inside_the_package("from utils.maps import entropy  # from utils\nimport numpy\n")
    assert rewritten == "from edarfusion.utils.maps import entropy  # from utils\nimport numpy\n"
    assert module.inside_the_package("from datasets import x\n") == "from datasets import x\n"
    with pytest.raises(ValueError, match="line 1: expected `from ... import ...`, found import utils.maps"):
        module.inside_the_package("import utils.maps\n")
