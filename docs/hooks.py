"""Pages of the site that are made from what the repository has already: its Markdown files, docstrings and commands.

All links lead from file to file in the repository, where people read them first; here they become links from page to page.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path, PurePosixPath
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_PAGES = {
    "README.md": "index.md",
    "k8s/README.md": "how-to/cluster.md",
    "k8s/PROVEN.md": "how-to/proven.md",
    "RESULTS.md": "results.md",
    "DECISIONS.md": "decisions.md",
    "BENCHMARKS.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Files of the repository, and the page that each becomes."""
_PACKAGES = ("training", "evaluation", "components", "pipelines")
_LINK = re.compile(r"(!?)\[([^][]*)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the folders of each package below Reference."""
    for entry in config.nav or []:
        if "Reference" in entry:
            entry["Reference"] += [{package: [{room: _page_of(package, room)} for room in _rooms(package)]} for package in _PACKAGES]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages, and the pictures that they show."""
    pictures: dict[str, Path] = {}
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, content=_with_links(source, page, pictures)))
    for path in sorted((_ROOT / "docs").rglob("*.md")):
        _with_links(path.relative_to(_ROOT).as_posix(), path.relative_to(_ROOT / "docs").as_posix(), pictures)
    for uri, picture in pictures.items():
        files.append(File.generated(config, uri, abs_src_path=str(picture)))
    for package in _PACKAGES:
        for room, modules in _rooms(package).items():
            content = "\n\n".join([f"# {package}.{room}".removesuffix(f".{package}"), *(f"::: {module}" for module in modules)])
            files.append(File.generated(config, _page_of(package, room), content=content))
    files.append(File.generated(config, "reference/commands.md", content=_commands_page()))
    return files


def on_page_read_source(page: Page, config: MkDocsConfig) -> str | None:
    """Return the text of a guide or tutorial with its links made for the site; the other pages have theirs already."""
    source = f"docs/{page.file.src_uri}"
    if page.file.generated_by or not source.endswith(".md"):
        return None
    return _with_links(source, page.file.src_uri, {})


def _page_of(package: str, room: str) -> str:
    return f"reference/{package}/{room.replace('.', '/')}.md"


def _rooms(package: str) -> dict[str, list[str]]:
    """Return the modules with public names of each folder of a package, by the folder's name; those beside the folders by the package's."""
    rooms: dict[str, list[str]] = {}
    for path in sorted((_ROOT / package).rglob("*.py")):
        if _has_public(path):
            *folders, _ = path.relative_to(_ROOT / package).parts
            module = ".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__")
            rooms.setdefault(".".join(folders) or package, []).append(module)
    return rooms


def _with_links(source: str, page: str, pictures: dict[str, Path]) -> str:
    """Return a file whose links lead to pages; collect its pictures. A link to a file that is no page becomes its text."""
    up = "../" * (len(PurePosixPath(page).parts) - 1)

    def replace(match: re.Match[str]) -> str:
        is_picture, text, target, anchor = match.groups()
        path = (_ROOT / source).parent / target
        if not path.exists():
            raise FileNotFoundError(f"{source} links to {target}, which does not exist")
        relative = path.resolve().relative_to(_ROOT).as_posix()
        if relative.startswith("docs/"):
            return f"{is_picture}[{text}]({up}{relative.removeprefix('docs/')}{anchor or ''})"
        if is_picture:
            uri = f"pictures/{path.name}"
            pictures[uri] = path
            return f"![{text}]({up}{uri})"
        if relative in _PAGES:
            return f"[{text}]({up}{_PAGES[relative]}{anchor or ''})"
        return f"`{relative}`" if text == target else text

    return _LINK.sub(replace, (_ROOT / source).read_text(encoding="utf-8"))


def _has_public(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") for node in body)


def _commands_page() -> str:
    """Return each command's usage, help and options."""
    from pipelines.cli.main import app

    group = typer.main.get_command(app)
    lines = ["# Commands", "", "`iddpm COMMAND --help` prints the same."]

    def describe(name: str, command: object) -> None:
        for child_name, child in getattr(command, "commands", {}).items():
            describe(f"{name} {child_name}", child)
        if hasattr(command, "commands"):
            return
        lines.extend(["", f"## {name}", "", str(command.help or "").strip(), ""])  # type: ignore[attr-defined]
        rows = [_row(each) for each in command.params if each.name != "help" and not getattr(each, "hidden", False)]  # type: ignore[attr-defined]
        lines.extend(["| argument | default | meaning |", "|---|---|---|", *rows] if rows else [])

    describe("iddpm", group)
    return "\n".join(lines)


def _row(parameter: Any) -> str:
    """Return an argument or an option of a command as a row of a table."""
    shown = (
        ", ".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.param_type_name == "option"
        else (parameter.metavar or parameter.name.upper())
    )
    default = (
        "" if parameter.default in (None, "", (), []) or parameter.default is False or parameter.required else f"`{parameter.default}`"
    )
    meaning = (parameter.help or "").replace("|", "\\|").replace("\n", " ")
    return f"| `{shown}` | {default} | {meaning} |"
