"""Build the documentation's site into ``site/``, and check every link in it.

``make docs`` installs what it needs into ``.venv/docs``, apart from the packages of the tests, and
runs this. Sphinx ends with an error at the first warning, such as a link to a page or a heading
that is not there. The pages that it wrote are read once more, since it does not look at links to
the Rust reference nor at what a page loads: the site has to work from a folder, without a network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "site"
PACKAGES = ROOT / ".venv" / "docs"
FIRST = "docs/README.html"
FORWARD = (
    f'<!doctype html><meta charset="utf-8"><title>sensmerge</title>'
    f'<meta http-equiv="refresh" content="0; url={FIRST}"><a href="{FIRST}">sensmerge</a>\n'
)

# Attributes of tags that make a browser load something when the page is shown.
LOADED = {"src", "poster"}


@dataclass
class Page(HTMLParser):
    """What a page of HTML links to, loads, and can be linked to.

    Attributes:
        links: Where its links lead.
        loads: What is fetched to show it.
        anchors: The places in it that links may name.
    """

    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what one tag says."""
        for name, value in attrs:
            if value is None:
                continue
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value)
            elif name == "href" and tag == "a":
                self.links.append(value)
            elif name in LOADED or (name == "href" and tag == "link"):
                self.loads.append(value)


@cache
def page(path: Path) -> Page:
    """One page, read."""
    found = Page()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def faults(site: Path) -> Iterator[str]:
    """What is wrong with the pages that Sphinx wrote, each in a sentence."""
    for path in sorted(site.rglob("*.html")):
        if path.relative_to(site).parts[0] in ("rustdoc", "_static"):
            continue  # rustdoc checks its own; the theme leaves templates among its files
        name, content = path.relative_to(site), page(path)
        for load in content.loads:
            if urlsplit(load).netloc:
                yield f"{name}: loads {load}, which needs a network"
        for link in [*content.links, *content.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else path.parent / unquote(parts.path)
            if not target.is_file():
                yield f"{name}: {link} leads to no file"
            elif target.suffix == ".html" and parts.fragment:
                anchor = unquote(parts.fragment)
                if anchor not in page(target.resolve()).anchors:
                    yield f"{name}: {link} leads to no place in {target.name}"


def rustdoc() -> None:
    """Write the reference of the core crate beside the pages."""
    folder = ROOT / "target" / "doc"
    shutil.rmtree(folder, ignore_errors=True)
    command = "cargo doc --quiet --locked --package sensmerge-core --no-deps"
    flags = os.environ | {"RUSTDOCFLAGS": "-D warnings"}
    if subprocess.run(command.split(), cwd=ROOT, env=flags).returncode != 0:
        sys.exit("error: cargo doc failed")
    shutil.copytree(folder, SITE / "rustdoc")


def sphinx() -> None:
    """Write the pages."""
    # Afresh: what conf.py adds to a page is no reason for Sphinx to read it again.
    strict = ["--fresh-env", "--fail-on-warning", "--keep-going", "--quiet"]
    where = ["--conf-dir", "docs", "--doctree-dir", "target/doctrees", ".", str(SITE)]
    command = [sys.executable, "-m", "sphinx", *strict, *where]
    paths = os.pathsep.join([str(PACKAGES), str(ROOT / "python")])
    if subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}).returncode != 0:
        sys.exit("error: sphinx failed")


def main() -> None:
    """Build the site and check it."""
    shutil.rmtree(SITE, ignore_errors=True)
    sphinx()
    rustdoc()
    (SITE / "index.html").write_text(FORWARD, encoding="utf-8")
    found = list(faults(SITE))
    for fault in found:
        print(f"error: {fault}", file=sys.stderr)
    if found:
        sys.exit(1)
    print(f"wrote {SITE.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
