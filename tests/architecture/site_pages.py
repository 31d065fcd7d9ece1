"""Pages of the documentation site that follow from the code: mkdocs calls `on_files` (mkdocs.yml, `hooks`).

The picture of packages and layers, the list of recipes, an API page a package, and the top-level pages (CONTRIBUTING,
SECURITY, CHANGELOG) with their links turned to where the site has them.
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import measure
import picture

ROOT = Path(__file__).resolve().parents[2]
TOP_LEVEL = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
FIELDS = ("recipe", "objectives")
"""Packages whose modules declare sections of a recipe."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to mkdocs' collection of files."""
    from mkdocs.structure.files import File

    for name, content in pages().items():
        files.append(File.generated(config, name, content=content))
    return files


def pages() -> dict[str, str]:
    """Path below the site -> text."""
    layers = measure.layers_near(ROOT / "dist_metaxlm")
    result = top_level_pages()
    result["architecture.svg"] = _picture(layers)
    result["reference/recipes.md"] = _recipes()
    result["reference/recipe-fields.md"] = _fields()
    packages = {name: _modules(name) for name in sorted(layers, key=lambda name: (-layers[name], name))}
    packages = {name: modules for name, modules in packages.items() if modules}
    result["reference/api.md"] = _api_index(packages, layers)
    result |= {f"reference/api/{name}.md": _api_page(name, modules) for name, modules in packages.items()}
    return result


def top_level_pages() -> dict[str, str]:
    """The top-level pages, as pages of the site."""
    return {target: with_site_links((ROOT / name).read_text(encoding="utf-8")) for name, target in TOP_LEVEL.items()}


def with_site_links(text: str) -> str:
    """Links of a top-level page, as seen from the site's root."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\]\((CONTRIBUTING|SECURITY|CHANGELOG)\.md", lambda match: f"]({match[1].lower()}.md", text)


def _picture(layers: dict[str, int]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "architecture.svg"
        picture.draw(measure.import_graph_of([ROOT / "dist_metaxlm", ROOT / "kernels"]), layers, output)
        return output.read_text(encoding="utf-8")


def _recipes() -> str:
    lines = ["# Recipes", "", "The recipes of the package, by name (`--recipe NAME`)."]
    lines += ["What each field means: [recipe fields](recipe-fields.md).", ""]
    for path in sorted((ROOT / "dist_metaxlm" / "recipe" / "recipes").glob("*.yaml")):
        lines += [f"## {path.stem}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def _fields() -> str:
    lines = ["# Recipe fields", "", "Sections of a recipe and their fields with defaults and units.", ""]
    for module in _field_modules():
        lines += [f"::: {module}", ""]
    return "\n".join(lines)


def _field_modules() -> list[str]:
    """Modules that declare sections of a recipe."""
    result = []
    for module in (module for package in FIELDS for module in _modules(package)):
        path = (ROOT / Path(*module.split("."))).with_suffix(".py")
        if path.is_file() and re.search(r"^class \w+\(Section\):", path.read_text(encoding="utf-8"), re.MULTILINE):
            result.append(module)
    return result


def _modules(package: str) -> list[str]:
    """Dotted names of a package's modules that have a docstring."""
    base = ROOT if package == "kernels" else ROOT / "dist_metaxlm"
    single = base / f"{package}.py"
    paths = [single] if single.is_file() else sorted((base / package).rglob("*.py"))
    names = []
    for path in paths:
        if path.name != "__main__.py" and ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def _api_index(packages: dict[str, list[str]], layers: dict[str, int]) -> str:
    lines = ["# API", "", "A page a package, from the highest layer to the lowest ([architecture](../architecture.md)).", ""]
    lines += ["| package | layer | modules |", "|---|---|---|"]
    lines += [f"| [{name}](api/{name}.md) | {layers[name]} | {len(modules)} |" for name, modules in packages.items()]
    return "\n".join([*lines, ""])


def _api_page(name: str, modules: list[str]) -> str:
    lines = [f"# {name}", ""]
    if name == "kernels":
        lines += ["Installed as `dist_metaxlm.kernels`: import from that name.", ""]
    fields = _field_modules()
    if set(modules) & set(fields):
        lines += ["Sections of a recipe are on the page [recipe fields](../recipe-fields.md).", ""]
    for module in modules:
        lines += [] if module in fields else [f"::: {module}", ""]
    return "\n".join(lines)
