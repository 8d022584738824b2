"""A hook of mkdocs, where its Markdown is not the hub's.

Links to files outside docs/ lead to the repository, and a bar in code of a table has no backslash.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\((?P<path>(?:\.\./)+[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page as mkdocs reads it. Raises FileNotFoundError for a link to no file."""
    source = PurePosixPath("docs", page.file.src_uri)

    def absolute(link: re.Match[str]) -> str:
        target = (ROOT / source.parent / link["path"]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return link[0]
        if not target.exists():
            raise FileNotFoundError(f"{source}: there is no {link['path']}")
        kind = "tree" if target.is_dir() else "blob"
        return f"]({config.repo_url.rstrip('/')}/{kind}/main/{target.relative_to(ROOT)}"

    return LINK.sub(absolute, CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown))
