"""What mkdocs does beside its pages: a page of reference a module, and the files outside docs/ that pages link to.

A link such as ``../benchmarks/results/step.json`` works where the pages are read in the repository; in the site the
same file is copied to ``files/benchmarks/results/step.json``, and a page of the root, such as CONTRIBUTING.md, is one.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("evos", "image_regression", "evos_nerf", "generalizable", "evonas")
ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r'(?P<before>\]\(|src="|href=")(?P<target>[^)"#\s]+)')


def modules() -> list[str]:
    """Each module or package of evos/ for itself, each application as a whole; packages bring their submodules."""
    paths = [path for path in sorted((ROOT / "evos").iterdir()) if not path.name.startswith("_")]
    core = [f"evos.{path.stem}" for path in paths if path.suffix == ".py" or (path / "__init__.py").exists()]
    return core + [name for name in PACKAGES if name != "evos" and (ROOT / name).is_dir()]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reference in the navigation."""
    assert isinstance(config.nav, list)
    config.nav.append({"API reference": [{name: f"reference/{name}.md"} for name in modules()]})
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the reference, the pages of the root and the files that pages link to."""
    for name in modules():
        files.append(File.generated(config, f"reference/{name}.md", content=f"# {name}\n\n::: {name}\n"))
    for name in ROOT_PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    pages = [file.src_uri for file in files.documentation_pages() if not file.src_uri.startswith("reference/")]
    for path in sorted({path for page in pages for _, path in outside_links(page)}):
        files.append(File.generated(config, site_uri(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ lead to their copies in the site."""
    here = page.file.src_uri

    def moved(match: re.Match[str]) -> str:
        path = normpath(join(dirname(in_repository(here)), match["target"]))
        return match["before"] + (
            relpath(site_uri(path), dirname(here) or ".") if (ROOT / path).exists() else match["target"]
        )

    return markdown if here.startswith("reference/") else LINK.sub(moved, markdown)


def in_repository(page: str) -> str:
    """Path of a page below the root of the repository."""
    return page if page in ROOT_PAGES else f"docs/{page}"


def site_uri(path: str) -> str:
    """Where a file of the repository stands in the site's sources."""
    if path in ROOT_PAGES:
        return path
    return path.removeprefix("docs/") if path.startswith("docs/") else f"files/{path}"


def outside_links(page: str) -> Iterator[tuple[str, str]]:
    """(target, path below the root) of a page's links to files that are no pages."""
    for match in LINK.finditer((ROOT / in_repository(page)).read_text()):
        path = normpath(join(dirname(in_repository(page)), match["target"]))
        if "://" not in match["target"] and site_uri(path).startswith("files/") and (ROOT / path).is_file():
            yield match["target"], path


__all__: list[Any] = ["on_config", "on_files", "on_page_markdown"]
