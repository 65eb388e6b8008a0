"""The dependency direction: evos knows no application and no front end; applications do not know each other."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
APPLICATIONS = {"image_regression", "evos_nerf", "generalizable", "evonas"}
FRONT_ENDS = {"nerfstudio", "omegaconf", "configargparse", "pymoo", "ray", "transformers"}
FORBIDDEN = {"evos": APPLICATIONS | FRONT_ENDS} | {name: APPLICATIONS - {name} for name in APPLICATIONS}
ALLOWED = {("evos/command_line.py", "configargparse")}
"""The one parser is the only file of the core that knows a front end."""
SCRIPT_FOLDERS = APPLICATIONS | {"benchmarks"}


def imported_packages(source: str) -> set[str]:
    """Top-level names of every absolute import, wherever it stands: a lazy import is an import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def wrong_imports(root: Path) -> Iterator[str]:
    """One line for each import that goes against the direction."""
    for package, forbidden in FORBIDDEN.items():
        for path in sorted((root / package).rglob("*.py")):
            for name in sorted(imported_packages(path.read_text()) & forbidden):
                if (str(path.relative_to(root)), name) not in ALLOWED:
                    yield f"{path.relative_to(root)} imports {name}"


def wrong_names(root: Path) -> Iterator[str]:
    """One line for each file or folder whose name hides another module.

    ``python FOLDER/main.py`` puts FOLDER first on sys.path, so a sibling ``signal.py`` replaces the stdlib's; a
    package ``tests/evos`` would hide ``evos``.
    """
    for folder in sorted(SCRIPT_FOLDERS):
        for path in sorted((root / folder).glob("*")):
            if (path.suffix == ".py" or path.is_dir()) and path.stem in sys.stdlib_module_names:
                yield f"{path.relative_to(root)} hides the stdlib's {path.stem}"
    for path in sorted((root / "tests").rglob("__init__.py")):
        yield f"{path.relative_to(root)} makes a package of a test folder"


def test_imports_go_in_the_allowed_direction():
    assert list(wrong_imports(ROOT)) == []


def test_no_module_hides_another():
    assert list(wrong_names(ROOT)) == []


def test_the_walk_reaches_the_core():
    assert {"torch", "jaxtyping"} <= imported_packages((ROOT / "evos" / "selection" / "base.py").read_text())


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("import ray.tune as tune, os", {"ray", "os"}),
        ("from omegaconf.base import Node", {"omegaconf"}),
        ("def late():\n    try:\n        import pymoo\n    except ImportError: ...", {"pymoo"}),
        ("from . import ray\nfrom ..fields import siren", set()),
        ("text = 'import ray'  # import ray", set()),
    ],
)
def test_every_kind_of_import_is_read(source, names):
    assert imported_packages(source) == names


def test_a_bad_tree_is_caught(tmp_path):
    files = {
        "evos/fields/siren.py": "import torch\nfrom nerfstudio.fields import base_field\n",
        "evos/config.py": "def load():\n    import image_regression.options\n",
        "evonas/search.py": "import evos, ray\nfrom generalizable import data\n",
        "generalizable/data.py": "from generalizable.main import run\nimport evos.coords\n",
        "image_regression/select.py": "",
        "image_regression/layers/types.py": "",
        "benchmarks/queue/run.py": "",
        "tests/evos/__init__.py": "",
    }
    for name, source in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    assert sorted(wrong_imports(tmp_path)) == [
        "evonas/search.py imports generalizable",
        "evos/config.py imports image_regression",
        "evos/fields/siren.py imports nerfstudio",
    ]
    assert list(wrong_names(tmp_path)) == [
        "benchmarks/queue hides the stdlib's queue",
        "image_regression/select.py hides the stdlib's select",
        "tests/evos/__init__.py makes a package of a test folder",
    ]
