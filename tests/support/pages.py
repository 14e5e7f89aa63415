"""README and docs, as tests read them: `from pages import COMMANDS, blocks, section`."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
    if path.name != "CHANGELOG.md"  # which speaks of versions that were
}
COMMANDS = PAGES["docs/commands.md"]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str | None = None) -> list[str]:
    """What stands between fences; of one language, or of all."""
    return [body for tag, body in FENCE.findall(text) if language is None or tag == language]


def prose(text: str) -> str:
    return FENCE.sub("", text)


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level, up to the next one."""
    (found,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found
