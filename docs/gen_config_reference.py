"""The pages on configuration: every key from the schemas, its meaning from the comments in `configs/`.

`python docs/gen_config_reference.py` prints them; `mkdocs build` takes them into the site.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lightning_t2drl.registry import locate
from lightning_t2drl.run import schemas
from lightning_t2drl.system.scenario_config import CONFIG_ROOT

LOG = logging.getLogger("mkdocs.config_reference")

COMMANDS = {
    "train": schemas.TrainConfig,
    "evaluate": schemas.EvaluateConfig,
    "benchmark": schemas.BenchmarkConfig,
    "export": schemas.ExportConfig,
    "compare": schemas.CompareConfig,
    "calibrate": schemas.CalibrateConfig,
    "explain": schemas.ExplainConfig,
    "view": schemas.ViewConfig,
    "tune": schemas.TuneConfig,
    "trace": schemas.TraceConfig,
    "diagnose": schemas.DiagnoseConfig,
    "serve": schemas.ServeConfig,
}
GROUPS = {  # of choices, with what they are and the schema of all their files; None: each file names its class
    "experiment": ("What is trained: a scheme and how long.", None),
    "env": ("The scenario: cell, users, models, demand, channel.", schemas.EnvConfig),
    "cacher": ("Which models are cached, decided once per frame.", None),
    "allocator": ("How bandwidth and denoising steps are split, decided in every slot.", None),
    "loop": ("How much is played, stored and learned.", schemas.LoopConfig),
    "trainer": ("Where and in which precision networks run.", schemas.TrainerConfig),
    "logger": ("Where metrics go, beside `metrics.csv`.", schemas.LoggerConfig),
    "space": ("Which keys `t2drl tune` tries, and their ranges.", schemas.SpaceConfig),
    "suite": ("What `t2drl benchmark` compares.", schemas.SuiteConfig),
}


# -- reading the files


def title_of(path: Path) -> str:
    """The first comment of a file."""
    for line in path.read_text().splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").strip()
    return ""


def comments(path: Path) -> dict[str, str]:
    """What each key of a YAML file means, by dotted key: the comment at the end of its line."""
    found: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        match = re.match(r"(\s*)([A-Za-z_]\w*):(.*)$", line)
        if not match:
            continue
        indent, key, rest = len(match.group(1)), match.group(2), match.group(3)
        while stack and stack[-1][0] >= indent:
            stack.pop()
        stack.append((indent, key))
        comment = re.search(r"(?:^|\s)#\s*(.*)$", rest)
        if comment:
            found[".".join(name for _, name in stack)] = comment.group(1).strip()
    return found


def prefix_of(path: Path) -> str:
    """The dotted key under which a file's keys stand: its folders, or nothing."""
    parts = path.relative_to(CONFIG_ROOT).parent.parts
    package = re.match(r"# @package (\S+)", path.read_text())
    if package:
        return "" if package.group(1) == "_global_" else package.group(1)
    return ".".join(parts)


def meanings() -> dict[str, list[tuple[Path, str]]]:
    """By dotted key, what files say of it, in the order of the tree."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in sorted(CONFIG_ROOT.rglob("*.yaml")):
        prefix = prefix_of(path)
        for key, text in comments(path).items():
            found.setdefault(f"{prefix}.{key}" if prefix else key, []).append((path, text))
    return found


MEANINGS = meanings()


def meaning(key: str, preferred: Path | None = None) -> str:
    """What the files say of a key: the preferred file, or else whichever says most."""
    said = MEANINGS.get(key, [])
    for path, text in said:
        if path == preferred:
            return text
    if said:
        return max((text for _, text in said), key=len)
    last = key.rpartition(".")[2]
    for budget in ("tiny", "small", "full"):  # the first says it for all
        sibling = re.sub(r"_(tiny|small|full)$", f"_{budget}", key)
        if sibling != key and sibling in MEANINGS:
            return meaning(sibling, preferred)
    if last == "name":
        return "shown in reports"
    LOG.warning("%s has no comment in any file of configs/", key)
    return ""


# -- writing the pages


def kind(hint: Any) -> str:
    """A type hint as a reader would say it."""
    if hint is Any:
        return "any"
    origin, arguments = get_origin(hint), [a for a in get_args(hint)]
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(kind(a) for a in arguments)}]"
    if arguments:
        return " or ".join("null" if a is type(None) else kind(a) for a in arguments)
    return str(getattr(hint, "__name__", hint))


def shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(shown(v) for v in value)}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {shown(v)}" for k, v in value.items()) + "}"
    return str(value)


def cell(text: str) -> str:
    """Text inside a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


Row = tuple[str, str, str, str]


def table(rows: list[Row], value: str = "default") -> str:
    lines = [f"| key | type | {value} | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| {code(k)} | {cell(t)} | {code(v)} | {cell(m)} |" for k, t, v, m in rows]
    return "\n".join(lines) + "\n"


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def rows_of(
    schema: type, prefix: str, values: Mapping[str, Any] | None = None, preferred: Path | None = None
) -> Iterator[Row]:
    """A row per key of a schema, groups of keys key by key; with the values of a composed config where given."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.name == "_target_":
            continue  # the class is named beside the table
        key = f"{prefix}.{field.name}" if prefix else field.name
        value = default_of(field) if values is None else values.get(field.name)
        inner = hints[field.name]
        if isinstance(value, Mapping) and "_target_" in value:
            inner = locate(str(value["_target_"]), key).Config
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            nested = value if isinstance(value, Mapping) else dataclasses.asdict(value) if value is not None else None
            yield from rows_of(inner, key, nested, preferred)
        else:
            yield key, kind(inner), shown(value), meaning(key, preferred)


def composed(command: str, *overrides: str) -> Any:
    """What Hydra composes for a command line, as plain data."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG_ROOT), version_base="1.3"):
        return OmegaConf.to_container(compose(command, overrides=list(overrides)))


def choices(folder: Path) -> list[Path]:
    """The files of a group that can be chosen; parts that others are made of cannot."""
    files = sorted(path for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
    return [path for path in files if "not a " not in title_of(path)]


def choice_table(group: str, files: list[Path]) -> str:
    lines = [f"| `{group}=` | what it is |", "| --- | --- |"]
    lines += [f"| [`{path.stem}`](#{anchor(group, path)}) | {cell(title_of(path))} |" for path in files]
    return "\n".join(lines) + "\n"


def anchor(group: str, path: Path) -> str:
    return f"{group.replace('/', '-')}-{path.stem}"


def heading(group: str, path: Path, level: int = 3) -> str:
    return f"{'#' * level} `{group}={path.stem}` {{ #{anchor(group, path)} }}\n\n{title_of(path)}\n"


def file_block(path: Path) -> str:
    lines = "\n".join(f"    {line}" if line else "" for line in path.read_text().splitlines())
    return f'??? note "configs/{path.relative_to(CONFIG_ROOT).as_posix()}"\n\n    ```yaml\n{lines}\n    ```\n'


def group_page(group: str) -> str:
    """The page of one config group: its choices, all keys, and the files."""
    what, schema = GROUPS[group]
    files = choices(CONFIG_ROOT / group)
    parts = [f"# `{group}=`\n\n{what}\n", choice_table(group, files)]
    if schema is not None:
        values = composed({"suite": "benchmark", "space": "tune"}.get(group, "train"))[group]
        parts += ["## Keys\n", table(list(rows_of(schema, group, values))), "## Choices\n"]
    for path in files:
        parts.append(heading(group, path))
        if schema is None and group != "experiment":
            parts.append(target_table(group, path))
        parts.append(file_block(path))
    for folder in sorted(p for p in (CONFIG_ROOT / group).rglob("*") if p.is_dir()):
        inner = folder.relative_to(CONFIG_ROOT).as_posix()
        inside = choices(folder)
        if not inside:
            continue
        parts += [f"## `{inner}=` {{ #{inner.replace('/', '-')} }}\n", choice_table(inner, inside)]
        for path in inside:
            parts += [heading(inner, path), file_block(path)]
    return "\n".join(parts)


def target_table(group: str, path: Path) -> str:
    """All keys of a file that names a class, with the values that the choice gives them."""
    values = composed("train", f"{group}={path.stem}")[group]
    rows = list(rows_of(locate(str(values["_target_"]), group).Config, group, values, path))
    classes = ", ".join(f"`{key}` {class_link(target)}" for key, target in targets(group, values))
    return f"{classes}\n\n{table(rows, 'value') if rows else 'It has no keys.'}\n"


def targets(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The classes that a composed group names, by key."""
    for key, value in values.items():
        if key == "_target_":
            yield f"{prefix}._target_", str(value)
        elif isinstance(value, Mapping):
            yield from targets(f"{prefix}.{key}", value)


def class_link(target: str) -> str:
    """A link to a class of the package in the API reference."""
    module, _, name = target.rpartition(".")
    package = module.split(".")[1]
    return f"[`{name}`](../api/{package}.md#{target})"


def command_page() -> str:
    """The page of what each command reads by itself, and of the groups there are."""
    lines = ["| group | what it is | choices |", "| --- | --- | --- |"]
    for group, (what, _) in GROUPS.items():
        names = ", ".join(f"`{path.stem}`" for path in choices(CONFIG_ROOT / group))
        lines.append(f"| [`{group}=`]({group}.md) | {what} | {names} |")
    parts = [
        "# Configuration\n",
        "Every key of every command, made from the schemas that check them and from the comments in `configs/`. "
        "A key that does not exist, a value of another type and an impossible combination end in one line "
        "([bad input](../bad-input.md)). `t2drl train --help` lists the choices.\n",
        "\n".join(lines) + "\n",
    ]
    for name, schema in COMMANDS.items():
        file = CONFIG_ROOT / f"{name}.yaml"
        parts += [
            f"## `t2drl {name}`\n",
            title_of(file) + "\n",
            table(list(own_rows(schema, file, composed(name)))),
            file_block(file),
        ]
    return "\n".join(parts)


def own_rows(schema: type, file: Path, values: Mapping[str, Any]) -> Iterator[Row]:
    """Keys of a command that no group holds."""
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        if field.name in GROUPS:
            continue
        inner = hints[field.name]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type):
            yield from rows_of(inner, field.name, values[field.name], file)
        else:
            yield field.name, kind(inner), shown(values[field.name]), meaning(field.name, file)


def pages() -> dict[str, str]:
    """Markdown by path under `docs/`."""
    made = {"configuration/index.md": command_page()}
    return made | {f"configuration/{group}.md": group_page(group) for group in GROUPS}


if __name__ == "__main__":
    for path_, text_ in pages().items():
        print(f"<!-- {path_} -->\n{text_}")
