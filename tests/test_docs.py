"""What README and docs say of commands holds: each that they show composes."""

import re
import shlex
from pathlib import Path

import pytest

from lightning_t2drl.run.commands import spelt_out
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.overrides import expand, read

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NEEDS_FILES = ("checkpoint=", "mine.", "weakest.", "--config-dir", ".yaml")  # of a run, or of the reader's


def shown():
    """Commands in shell blocks, with their pages."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["t2drl"] and "=" in line and not any(part in line for part in NEEDS_FILES):
                    yield pytest.param(words[1:], id=f"{page.stem}: {' '.join(words[1:])}")


@pytest.mark.parametrize("words", list(shown()))
def test_commands_compose(words):
    command, *arguments = words
    given = read(arguments)
    for job in expand(given.overrides) if given.multirun else [given.overrides]:
        compose(command, spelt_out(command, [word for word in job if not word.startswith("hydra")]))


def test_readme_is_short_and_begins_with_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 200
    commands = [line for line in lines if line.startswith("make ")][:2]
    assert [command.split()[1] for command in commands] == ["train", "test"]
    assert lines.index(commands[0]) < 10


def test_map_of_the_tree_is_true():
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## Map") :].split("```")[1]
    for line in tree.strip().splitlines():
        parent = ROOT / "lightning_t2drl" if line.startswith("  ") else ROOT
        for name in re.match(r"\s*((?:[a-z0-9_]+(?:/|\.py)\s)+)", line + " ").group(1).split():
            assert (parent / name).exists(), name
    told = set(re.findall(r"^  ([a-z_]+)/", tree, re.M)) | set(re.findall(r"^  [a-z_]+/ ([a-z_]+)/", tree, re.M))
    folders = {path.parent.name for path in (ROOT / "lightning_t2drl").glob("*/__init__.py")}
    assert told == folders
