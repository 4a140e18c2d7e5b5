"""The config tree: every key is commented and read, every file composes, and defaults agree with the schemas."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lightning_t2drl.registry import locate
from lightning_t2drl.run import schemas
from lightning_t2drl.run.cli import compose_config
from lightning_t2drl.run.schemas import EvaluateConfig, ExportConfig, TrainConfig, build_policies, strict
from lightning_t2drl.system.scenario_config import CONFIG_ROOT, ServiceConfig

ROOT = CONFIG_ROOT.parent
FILES = sorted(CONFIG_ROOT.rglob("*.yaml"))
COMPOSED_BY_HYDRA = {"defaults", "hydra"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIG_ROOT)))
def test_every_file_says_what_it_is_and_every_key_has_a_comment(path):
    lines = path.read_text().splitlines()
    described = [line for line in lines if line.startswith("# ") and not line.startswith("# @package")]
    assert described, "no description"
    if path.parent.name in ("experiment", "suite") or path.stem == "drift":
        return  # they set keys that are described where they are defined
    content = path.read_text().split("\nhydra:")[0]
    bare = [
        line
        for line in content.splitlines()
        if re.match(r"\s*[a-z_]+: \S", line) and "#" not in line and not line.strip().startswith(("name:", "_target_:"))
    ]
    assert not bare, bare


BY_NAME = ("getattr", "vector")  # functions that read the attribute whose name they are given


def all_schemas():
    named = [value for value in vars(schemas).values() if dataclasses.is_dataclass(value) and isinstance(value, type)]
    targets = {target for path in FILES for target in re.findall(r"_target_: (\S+)", path.read_text())}
    return {*named, ServiceConfig, *(locate(target).Config for target in targets)}


def test_no_key_that_nothing_reads():
    """Every field of every schema is read as an attribute (or by its name in a check) somewhere outside its definition."""
    read: set[str] = set()
    for path in [*(ROOT / "lightning_t2drl").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in BY_NAME:
                read |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    by_name = {"service"} | {f.name for f in dataclasses.fields(ServiceConfig)}  # converted field by field
    by_amount = {
        f"{what}_{budget}" for what in ("seeds", "frames", "episodes", "slow_episodes") for budget in ("small", "full")
    }
    unread = {
        f"{schema.__name__}.{field.name}"
        for schema in all_schemas()
        for field in dataclasses.fields(schema)
        if field.name != "_target_" and field.name not in read | by_name | by_amount
    }
    assert not unread, unread


def test_composed_defaults_are_complete():
    """What Hydra composes has exactly the schema's keys: nothing is only in the code, nothing only in YAML."""
    for name, schema in (("train", TrainConfig), ("evaluate", EvaluateConfig), ("export", ExportConfig)):
        composed = OmegaConf.to_container(compose_config(name, []))
        assert set(composed) == {field.name for field in dataclasses.fields(schema)}
        for section in ("env", "loop", "trainer", "logger", "checkpoint", "evaluation"):
            if isinstance(composed.get(section), dict):
                expected = schema.__dataclass_fields__[section].default_factory()
                assert set(composed[section]) == {field.name for field in dataclasses.fields(expected)}, section


@pytest.mark.parametrize("group", ["cacher", "allocator"])
def test_every_policy_file_has_its_schemas_keys(group):
    for path in sorted((CONFIG_ROOT / group).glob("*.yaml")):
        content = OmegaConf.to_container(OmegaConf.load(path))
        target = locate(content["_target_"])
        assert set(content) == {field.name for field in dataclasses.fields(target.Config)}, path
        config = strict(TrainConfig, compose_config("train", [f"{group}={path.stem}"]))
        build_policies(config.env, config.cacher, config.allocator)


def test_published_figures_and_links_exist():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith(("http", "configuration/", "api/")):  # pages of the site that are made when it is
                assert (page.parent / link).exists(), (page, link)
    assert Path(ROOT / "LICENSE").exists()


def test_paths_of_checkpoints_need_no_quotes():
    assert compose_config("train", ["resume=runs/a/frame=000000002.ckpt"]).resume == "runs/a/frame=000000002.ckpt"
    assert compose_config("evaluate", ["checkpoint='a=b'"]).checkpoint == "a=b"
