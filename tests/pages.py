"""The documents as tests see them: pages, their code blocks, and running these."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def page(name: str) -> str:
    """The text of docs/<name>.md."""
    return (DOCS / f"{name}.md").read_text()


def blocks(name: str, language: str = "python") -> list[str]:
    """The code blocks of a page in one language, in order; a page without any is an error."""
    found = re.findall(rf"^```{language}\n(.*?)^```", page(name), re.S | re.M)
    assert found, f"docs/{name}.md has no {language} blocks"
    return found


def run(name: str, names: dict[str, object] | None = None) -> dict[str, object]:
    """Run all Python blocks of a page as one script that starts with `names`; what it has defined."""
    names = {"__name__": name} if names is None else names
    for block in blocks(name):
        exec(compile(block, f"docs/{name}.md", "exec"), names)
    return names
