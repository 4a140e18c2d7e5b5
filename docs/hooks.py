"""What `mkdocs build` does beyond its configuration: pages made from code, configs and results; formulas as MathML."""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path

import markdown
from latex2mathml.converter import convert
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import gen_config_reference  # noqa: E402 - a script beside this one

PAGES = {**gen_config_reference.pages()}  # path under docs/: Markdown

API = {
    "lightning_t2drl": "The public names.",
    "system": "The world as pure tensor functions: scenario, demand, mobility, channel, service, serving, bounds.",
    "envs": "The world as environments that agents of other libraries can play.",
    "policy": "What cachers and allocators share.",
    "cachers": "One cacher per file, and what they share.",
    "allocators": "One allocator per file, and what they share.",
    "networks": "Actors, denoisers, critics, Q-networks, heads and features.",
    "loop": "The frame and slot loop as a LightningModule, evaluation, replay, metrics, checkpoints.",
    "callbacks": "Lightning callbacks of a run.",
    "run": "One run from a checked config: schemas, training, evaluation, tables, figures.",
    "suite": "Suites of runs and their statistics.",
    "calibrate": "Quality and seconds of real generative models against their steps.",
    "deploy": "A policy as ONNX, and what runs it.",
    "accel": "What is fast because it is unusual.",
}
FOLDERS = {"callbacks": ROOT / "callbacks"}  # others lie in lightning_t2drl/


def api_pages() -> dict[str, str]:
    """A page per folder of the package, with a mkdocstrings directive per module."""
    pages = {}
    rows = []
    for name, what in API.items():
        folder = FOLDERS.get(name, ROOT / "lightning_t2drl" / name)
        if name == "lightning_t2drl":
            modules = ["lightning_t2drl"]
        elif folder.with_suffix(".py").is_file():
            modules = [f"lightning_t2drl.{name}"]
        else:
            package = "callbacks" if name == "callbacks" else f"lightning_t2drl.{name}"
            files = sorted(p.relative_to(folder).with_suffix("") for p in folder.rglob("*.py") if p.stem[0] != "_")
            modules = [f"{package}.{'.'.join(file.parts)}" for file in files]
        if not modules:
            continue
        title = name if name == "lightning_t2drl" else name.rpartition("/")[2]
        body = "\n".join(f"::: {module}\n" for module in modules)
        pages[f"api/{name}.md"] = f"# `{title}`\n\n{what}\n\n{body}"
        rows.append(f"| [`{title}`]({name}.md) | {what} |")
    table = "\n".join(["| package | what is in it |", "| --- | --- |", *rows])
    pages["api/index.md"] = f"# Python API\n\nMade from the docstrings.\n\n{table}\n"
    return pages


PAGES |= api_pages()


class Literally(InlineProcessor):
    """Text in which asterisks and underscores are no emphasis."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # type: ignore[override]
        return m.group(0), m.start(0), m.end(0)


class Shapes(markdown.Extension):
    """Keeps shapes, such as `[*, U, 2]`, and `_target_` as they are."""

    def extendMarkdown(self, md: markdown.Markdown) -> None:
        md.inlinePatterns.register(Literally(r"\[\*(?:, ?[A-Za-z0-9_ ]+)*\]|\b_target_\b"), "shapes", 185)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the navigation that are made from what is there."""
    config.markdown_extensions.append(Shapes())  # type: ignore[arg-type]
    results = [f"results/{path.parent.name}/README.md" for path in sorted((ROOT / "results").glob("*/README.md"))]
    made = {
        "CONFIGURATION": [p for p in PAGES if p.startswith("configuration/")],
        "API": ["api/index.md", *(p for p in PAGES if p.startswith("api/") and p != "api/index.md")],
        "RESULTS": ["results/README.md", *results],
    }
    for entry in config.nav or []:
        for title, content in entry.items():
            if isinstance(content, str) and content in made:
                entry[title] = made[content]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and the published results with their figures and tables."""
    for path, text in PAGES.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.is_file() and path.suffix in (".md", ".png", ".csv", ".json"):
            uri = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(text: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between docs/ and the rest of the repository, as they work on the site."""
    source = page.file.src_uri
    here = posixpath.dirname(source)
    if source == "bad-input.md" or (source.startswith("results/") and here != "results"):
        page.meta["hide"] = ["toc"]  # wide tables
    in_docs = not source.startswith("results/")  # of the repository: docs/ is the root of the site

    def mend(match: re.Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        place = posixpath.normpath(posixpath.join("docs" if in_docs else "", here, target))
        if place.startswith("docs/"):
            place = place.removeprefix("docs/")
        elif not place.startswith("results/"):
            return f"{label}`{place}`" if not label.startswith("[") else f"`{place}`"  # a file of the repository
        return f"{label}({posixpath.relpath(place, here or '.')}{anchor})"

    outside = r"(\[[^\]]*\])\(((?:\.\./)+[^)#\s]+)(#[^)]*)?\)"
    return re.sub(outside, mend, text)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw without a script; long commands in tables may break."""

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match.group(2))
        block = tex.startswith("\\[")
        return convert(tex[2:-2].strip(), display="block" if block else "inline")

    def breakable(match: re.Match[str]) -> str:
        text = match.group(2)
        return match.group(1) + (re.sub(r"([,=\[]|\.(?=[a-zA-Z]))", r"\1<wbr>", text) if len(text) > 45 else text)

    content = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, content, flags=re.S)
    return re.sub(r"(<td[^>]*><code>)([^<]*)", breakable, content)
