# SPDX-License-Identifier: Apache-2.0
"""A hook of mkdocs (mkdocs.yml): links that leave docs/ work on the site as they do in the repository.

CHANGELOG.md and CONTRIBUTING.md become pages. Any other file that a page links to is copied to repository/ of
the site. A link to a folder leads to its README.md; without one, only the text of the link remains.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "README.md": "index.md"}
LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<link>[^)#\s]+)(?P<anchor>#[^)]*)?\)")


def target(page: str, link: str) -> str | None:
    """The path in the repository that a page, named by its own, links to; None for a web address."""
    if "://" in link or link.startswith("mailto:"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return f"{path}/README.md" if (ROOT / path).is_dir() else path


def targets(markdown: str, page: str) -> list[str]:
    """The paths of all files of the repository that a page links to."""
    paths = (target(page, match["link"]) for match in LINK.finditer(markdown))
    return [path for path in paths if path is not None]


def site_path(path: str) -> str:
    """Where a file of the repository stands on the site."""
    return path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"repository/{path}")


def relinked(markdown: str, page: str) -> str:
    """The text of a page, with links that lead to the same files from the page's place on the site."""
    here = posixpath.dirname(site_path(page)) or "."

    def link(match: re.Match[str]) -> str:
        path = target(page, match["link"])
        if path is None:
            return match[0]
        if not (ROOT / path).exists() and (ROOT / path).parent.is_dir() and path.endswith("/README.md"):
            return match["text"]
        return f"[{match['text']}]({posixpath.relpath(site_path(path), here)}{match['anchor'] or ''})"

    return LINK.sub(link, markdown)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds what the pages link to, and what those link to in turn."""
    queue = ["CHANGELOG.md", "CONTRIBUTING.md"]
    for file in files.documentation_pages():
        queue += targets(file.content_string, f"docs/{file.src_uri}")
    while queue:
        path = queue.pop()
        source = ROOT / path
        if path.startswith("docs/") or files.get_file_from_path(site_path(path)) or not source.is_file():
            continue
        if source.suffix != ".md":
            files.append(File.generated(config, site_path(path), abs_src_path=str(source)))
            continue
        text = source.read_text()
        files.append(File.generated(config, site_path(path), content=relinked(text, path)))
        queue += targets(text, path)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Changes the links of the pages of docs/; those that `on_files` added have theirs."""
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}")
