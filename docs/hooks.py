"""What mkdocs adds to the pages of this folder: the reference, a page for each room of the package, and the project's own texts."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "user_dir" / "emohubert"
TEXTS = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def rooms():
    """{room: what it is for}, in the order of the table in docs/code.md."""
    table = (ROOT / "docs" / "code.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| `(\w+)/` \| (.+?) \|", table, flags=re.MULTILINE))


def reference(room, purpose):
    """The page of a room: every public name of its modules, from their docstrings."""
    modules = sorted(path.stem for path in (PACKAGE / room).glob("*.py") if not path.stem.startswith("_"))
    lines = [f"# {room}", "", f"{purpose[0].upper()}{purpose[1:]}.", ""]
    for module in modules:
        lines += [f"## emohubert.{room}.{module}", "", f"::: emohubert.{room}.{module}", "    options: {show_root_heading: false}", ""]
    return "\n".join(lines)


def on_config(config):
    """Put the reference into the navigation."""
    config.nav.append({"Reference": [{room: f"reference/{room}.md"} for room in rooms()]})
    return config


def on_files(files, config):
    """Add the generated pages."""
    for room, purpose in rooms().items():
        files.append(File.generated(config, f"reference/{room}.md", content=reference(room, purpose)))
    for page, name in TEXTS.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
        files.append(File.generated(config, page, content=text))
    return files
