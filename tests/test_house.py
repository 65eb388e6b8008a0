"""The house keeps its own rules: one version, no hosts, links and configs that exist, an environment made once."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import evos
from evos.selection import SELECTORS

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [ROOT / "benchmarks" / "README.md", *sorted((ROOT / "configs").rglob("README.md"))]
HOSTS = re.compile(
    r"https?://|\bgit\+|\b(?:pypi|pythonhosted|npmjs|pytorch|conda|anaconda)\.(?:org|com)|-index-url|find-links"
)


def document(name: str) -> str:
    if not (ROOT / name).exists():
        pytest.skip(f"there is no {name} yet")
    return (ROOT / name).read_text()


# ---- files that must agree


@pytest.mark.parametrize(
    "name",
    ["constraints.txt", "pyproject.toml", "mkdocs.yml", "Makefile", ".ci/run", ".pre-commit-config.yaml", ".gitignore"],
)
def test_no_file_names_a_host(name):
    assert HOSTS.findall((ROOT / name).read_text()) == []


@pytest.mark.parametrize(
    "line", ["-i https://pypi.org/simple", "--extra-index-url x", "torch @ git+ssh://x", "pypi.org"]
)
def test_a_host_would_be_found(line):
    assert HOSTS.search(line)


def test_the_changelog_has_this_version_on_top():
    assert re.findall(r"^## \[(\d[^]]*)\]", document("CHANGELOG.md"), re.MULTILINE)[0] == evos.__version__


def test_every_direct_dependency_is_pinned_within_its_bounds():
    specifiers = pytest.importorskip("packaging.requirements")
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for name in extras for text in extras[name] if name != "all"]
    for requirement in map(specifiers.Requirement, texts):
        assert requirement.specifier.contains(pins[re.sub(r"[-_.]+", "-", requirement.name).lower()]), requirement


def test_make_knows_the_extras_and_all_means_all():
    extras = PROJECT["optional-dependencies"]
    known = re.search(r"^KNOWN_EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert known and known[1].split() == list(extras)
    assert extras["all"] == [f"evos[{','.join(name for name in extras if name != 'all')}]"]


def test_every_config_in_the_documentation_exists():
    text = "".join(path.read_text() for path in DOCUMENTS)
    names = re.findall(
        r"((?:configs|image_regression|audio_regression|generalizable)/\w[\w/-]*\.(?:txt|ya?ml))\b", text
    )
    names += re.findall(r"`(\w+\.ya?ml)`", document("docs/configurations.md"))
    assert len(names) > 30
    roots = (ROOT, ROOT / "configs", ROOT / "configs" / "generalizable")
    assert [name for name in names if not any((root / name).exists() for root in roots)] == []


def test_the_readme_and_ci_run_the_same_tests():
    assert "make test" in document(".ci/run")
    assert "make test" in document("README.md")
    assert re.search(r"^test: .*\bdocs\b", document("Makefile"), re.MULTILINE)


def test_every_mutation_finds_its_line():
    specification = importlib.util.spec_from_file_location("mutations", ROOT / "tests" / "mutations.py")
    assert specification and specification.loader
    mutations = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(mutations)
    counts = {one.what: (ROOT / one.file).read_text().count(one.old) for one in mutations.MUTATIONS}
    assert len(counts) >= 90 and {what: count for what, count in counts.items() if count != 1} == {}


# ---- documents


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def links(path: Path) -> Iterator[tuple[str, str, str]]:
    """(link, path, anchor) of a document's links to files of the repository."""
    for link in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", path.read_text()):
        target, _, anchor = "".join(link).partition("#")
        if "://" not in target:
            yield "".join(link), target, anchor


def test_the_readme_is_short():
    lines = document("README.md").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_of_prose_are_short(path):
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    broken = []
    for link, target, anchor in links(path):
        found = (path.parent / target).resolve() if target else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            broken.append(link)
    assert broken == []


def test_every_benchmark_is_listed():
    programs = {path.name for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text()}
    listed = re.findall(r"`(\w+\.py)`", document("benchmarks/README.md"))
    assert programs and sorted(programs - set(listed)) == []
    assert [name for name in listed if not (ROOT / "benchmarks" / name).exists()] == []


def test_every_page_of_results_links_to_recorded_runs():
    for name in ("results", "neutral_benchmark", "derivatives", "generalizable"):
        found = [target for _, target, _ in links(ROOT / "docs" / f"{name}.md") if target.endswith(".json")]
        assert found, name


# ---- sizes and manners of the code


def test_the_method_is_read_in_one_sitting():
    assert len((ROOT / "evos" / "selection" / "evos.py").read_text().splitlines()) <= 150
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in (ROOT / "evos").rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def selector_probes(source: str) -> list[str]:
    """Calls that ask a selector, or its config, what it is instead of using the protocol."""
    classes = {kind.__name__ for pair in SELECTORS.values() for kind in pair} | {"Selector", "SelectorConfig"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) >= 2):
            continue
        subject, kind = ast.unparse(node.args[0]), set(re.findall(r"\w+", ast.unparse(node.args[1])))
        is_probe = node.func.id in ("getattr", "hasattr") and re.search(r"selector\b(?!_)", subject)
        if is_probe or (node.func.id == "isinstance" and kind & classes):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("getattr(self.selector, 'x', None)", 1),
        ("hasattr(trainer.selector, 'x')", 1),
        ("isinstance(selector, EvosSelector)", 1),
        ("isinstance(config, (SoftConfig, TilesConfig))", 1),
        ("getattr(config, name)\nisinstance(field, Field)", 0),
    ],
)
def test_a_probe_would_be_found(source, count):
    assert len(selector_probes(source)) == count


def test_no_selector_is_probed_outside_of_selection():
    folders = ("evos", "image_regression", "evos_nerf", "generalizable", "evonas", "benchmarks", "examples")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    outside = [path for path in paths if ROOT / "evos" / "selection" not in path.parents]
    found = {str(path.relative_to(ROOT)): selector_probes(path.read_text()) for path in outside}
    assert {name: probes for name, probes in found.items() if probes} == {}


# ---- make install, with a pip that only writes down what it was asked for


class Clone:
    """A copy of the files that `make install` reads, and a fake Python outside of it."""

    def __init__(self, folder: Path, bin_: Path) -> None:
        self.folder, self.bin = folder, bin_
        folder.mkdir()
        bin_.mkdir(exist_ok=True)
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        self.python = bin_ / "python"
        self.log = bin_ / "pip.log"
        self.log.touch()
        self.python.write_text(
            "#!/bin/sh\n"
            f'case "$*" in *"pip install"*) echo "$PWD: $*" >> "{self.log}"; test ! -e "{bin_}/broken";;\n'
            '"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; esac\n'
        )
        self.python.chmod(0o755)

    def install(self, *arguments: str) -> list[str]:
        """The extras that pip was asked for by one `make install`."""
        before = len(self.log.read_text().splitlines())
        self.make("install", *arguments).check_returncode()
        calls = self.log.read_text().splitlines()[before:]
        assert all(call.startswith(f"{self.folder}: ") and "-c constraints.txt -e " in call for call in calls)
        return [call.split(" -e .")[1] for call in calls]

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "VENV")}
        command = ["make", "--no-print-directory", *arguments]
        if not any(argument.startswith("PYTHON=") for argument in arguments):
            command.append(f"PYTHON={self.python}")
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def clone(tmp_path):
    if not shutil.which("make"):
        pytest.skip("needs make")
    return Clone(tmp_path / "a clone", tmp_path / "bin")


def test_an_environment_is_made_once(clone):
    assert clone.install("EXTRAS=regress,dev") == ["[regress,dev]"]
    assert clone.install("EXTRAS=regress,dev") == []
    assert clone.make("-n", "install", "EXTRAS=dev,regress").stdout.count("\n") == 1


def test_extras_that_are_there_are_not_installed_again(clone):
    clone.install("EXTRAS=regress,dev")
    assert clone.install("EXTRAS=regress") == []
    assert clone.install("EXTRAS=") == []
    assert clone.install("EXTRAS=regress,nerf") == ["[regress,nerf]"]
    assert clone.install("EXTRAS=nerf,dev") == []


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_installs_again_and_a_touched_file_does_not(clone, name):
    clone.install("EXTRAS=regress,dev")
    text = (clone.folder / name).read_text()
    (clone.folder / name).write_text(text)
    assert clone.install("EXTRAS=regress,dev") == []
    (clone.folder / name).write_text(text + "# changed\n")
    assert clone.install("EXTRAS=regress") == ["[regress]"]
    assert clone.install("EXTRAS=dev") == ["[dev]"]
    (clone.folder / name).write_text(text)
    assert clone.install("EXTRAS=dev") == ["[dev]"]


def test_a_new_package_installs_again(clone):
    clone.install("EXTRAS=regress")
    (clone.folder / "evos_nerf").mkdir()
    (clone.folder / "evos_nerf" / "__init__.py").touch()
    assert clone.install("EXTRAS=regress") == ["[regress]"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_shared_environment_follows_the_clone_that_uses_it(clone, tmp_path, linked):
    if linked:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "venv").symlink_to(tmp_path / "elsewhere")
    other, venv = Clone(tmp_path / "b", tmp_path / "bin"), f"VENV={tmp_path}/venv"
    assert clone.install(venv) == ["[regress]"]
    assert other.install(venv) == ["[regress]"]
    assert clone.install(venv) == ["[regress]"]
    assert clone.install(venv) == []


def test_a_failed_install_is_tried_again(clone):
    (clone.bin / "broken").touch()
    assert clone.make("install").returncode == 2
    (clone.bin / "broken").unlink()
    assert clone.install() == ["[regress]"]


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("PYTHON=python3.1", "error: PYTHON: got python3.1, which does not run here; allowed: Python 3.11 or later"),
        (
            "EXTRAS=regres",
            "error: EXTRAS: got regres; allowed: regress nerf meta nas teacher docs dev all, joined by commas",
        ),
    ],
)
def test_a_wrong_variable_is_one_clear_line(clone, argument, line):
    result = clone.make("install", argument)
    # The second line is make's own "Error 2".
    assert result.returncode == 2 and result.stderr.splitlines()[0] == line and len(result.stderr.splitlines()) == 2
    assert not (clone.folder / ".venv").exists()
