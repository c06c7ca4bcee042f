"""Sphinx's settings: the site is the repository's Markdown as it stands, see scripts/website.py.

Pages hold no directive, so that they read well on a code host. What a site needs beside them is
added while they are read: the contents of the navigation, and the reference of the Python package.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sensmerge

project = "sensmerge"
author = "The sensmerge authors"
version = release = sensmerge.__version__
language = "en"

# Where Sphinx starts, from the folder of the repository.
root_doc = "docs/README"
include_patterns = [
    "*.md",
    "docs/**.md",
    "benches/records/*.md",
    "examples/*/README.md",
    "rust/*/README.md",
]
# Never walked through.
exclude_patterns = [".*", "target", "site", "dist", "demo", "**/__pycache__"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 6
autodoc_class_signature = "separated"
autodoc_typehints = "signature"
napoleon_use_ivar = True
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
# Rows of sums and formulas are indented; they are no Python.
highlight_language = "text"

html_theme = "sphinx_book_theme"
html_title = f"sensmerge {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # one search box is enough, at the side
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
}

INDEX = "docs/README"
METHODS = "docs/methods/README"
PYTHON = "docs/python"
RUST = "docs/rust"

LINK = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<path>[^)#]+)\.md\)", flags=re.MULTILINE)


def contents(index: str) -> str:
    """The navigation: a list of pages for every section of the index, in the index's order."""
    blocks = []
    for section in index.split("\n## ")[1:]:
        caption, _, text = section.partition("\n")
        entries = [f"{link['title']} <{link['path']}>" for link in LINK.finditer(text)]
        if entries:
            blocks.append(toctree(*entries, caption=caption))
    return "".join(blocks)


def toctree(*entries: str, **options: str) -> str:
    """A list of pages for the navigation alone."""
    lines = [f":{name}: {value}".rstrip() for name, value in ({"hidden": ""} | options).items()]
    return "\n".join(["", "```{toctree}", *lines, "", *entries, "```", ""])


def reference() -> str:
    """The public names of the package, classes first."""
    blocks = []
    for name in sensmerge.__all__:
        if isinstance(getattr(sensmerge, name), type):
            options = "   :members:\n   :exclude-members: __init__\n"
            directive = f".. autoclass:: sensmerge.{name}\n{options}"
        else:
            directive = f".. autofunction:: sensmerge.{name}\n"
        blocks.append(f"\n### {name}\n\n```{{eval-rst}}\n{directive}```\n")
    return "\n## Reference\n" + "".join(blocks)


RUSTDOC = '\n<p><a href="../rustdoc/sensmerge_core/index.html">The reference of the crate</a></p>\n'


def complete(app: Any, name: str, source: list[str]) -> None:
    """Add to a page what the site alone needs."""
    if name == INDEX:
        source[0] += contents(source[0])
    elif name == METHODS:
        source[0] += toctree("*", glob="")
    elif name == PYTHON:
        source[0] += reference()
    elif name == RUST:
        source[0] += RUSTDOC
    elif name not in listed(Path(app.srcdir)):
        # Reached by links alone.
        source[0] = f"---\norphan: true\n---\n{source[0]}"


def listed(root: Path) -> set[str]:
    """The pages that the index and the list of methods name."""
    index = (root / f"{INDEX}.md").read_text(encoding="utf-8")
    folder = root / "docs"
    named = {
        (folder / f"{link['path']}.md").resolve().relative_to(root.resolve())
        for link in LINK.finditer(index)
    }
    named |= {path.relative_to(root) for path in (folder / "methods").glob("*.md")}
    return {path.with_suffix("").as_posix() for path in named}


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True}
