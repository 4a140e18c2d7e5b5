"""The config tree and how it is composed: every key is commented and read, every word counts or is refused."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from lightning_t2drl.building import build_policies
from lightning_t2drl.errors import UserError
from lightning_t2drl.registry import locate
from lightning_t2drl.run import schemas
from lightning_t2drl.run.choices import groups, options
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.schemas import SCHEMAS
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.scenario_config import CONFIG_ROOT, ServiceConfig
from tools.fuzz_overrides import fuzz

ROOT = CONFIG_ROOT.parent
FILES = sorted(CONFIG_ROOT.rglob("*.yaml"))


def plain(*words, command="train"):
    return compose(command, words).plain


# -- the files


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIG_ROOT)))
def test_every_file_says_what_it_is_and_every_key_has_a_comment(path):
    text = path.read_text()
    described = [line for line in text.splitlines() if line.startswith("# ") and not line.startswith("# @package")]
    assert described, "no description"
    derived = "defaults:" in text and path.parent != CONFIG_ROOT and path.stem != "paper"
    if path.parent.name in ("experiment", "service", "catalogue") or derived:
        return  # they set keys that are described where they are defined, or on the page on own services
    bare = [
        line
        for line in text.split("\nhydra:")[0].splitlines()
        if re.match(r"\s*[a-z_]+: \S", line) and "#" not in line and not line.strip().startswith(("name:", "_target_:"))
    ]
    assert not bare or path.parent.name == "suite", bare


SETS = ("allocator/actor=sets", "allocator/critic=sets")


@pytest.mark.parametrize("words", [("cacher=popular", "allocator=flow"), ("cacher=knapsack", "allocator=exact"), SETS])
@pytest.mark.parametrize("name", ["cells", "cooperative", "loads", "mixed", "paper", "literal", "ddpg_literal"])
def test_what_an_experiment_says_fits_into_whatever_is_exchanged(name, words):
    chain = ["allocator/diffusion=sample"] if words is SETS and "ddpg" not in name else []
    config = compose("train", [f"experiment=t2drl_{name}", *words, *chain]).config
    build_policies(config.env, config.cacher, config.allocator)


def test_an_experiment_that_chooses_a_part_of_what_is_exchanged_is_told(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - t2drl\n  - override /cacher/network: models\nname: mine\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^cacher/network: no such group to choose from in what is composed here$"):
        plain(f"--config-dir={tmp_path}", "experiment=mine", "cacher=popular")


BY_NAME = ("getattr", "vector")  # functions that read the attribute whose name they are given


def all_schemas():
    named = [value for value in vars(schemas).values() if dataclasses.is_dataclass(value) and isinstance(value, type)]
    targets = {target for path in FILES for target in re.findall(r"_target_: (\S+)", path.read_text())}
    return {*named, ServiceConfig, *(locate(target).Config for target in targets)}


def test_no_key_that_nothing_reads():
    """Every field of every schema is read as an attribute (or by its name in a check) somewhere outside its definition."""
    read: set[str] = set()
    ends: set[str] = set()  # of names put together, such as `f"{what}_warmup"`
    amounts = tuple(f"_{budget}" for budget in schemas.BUDGETS)
    for path in [*(ROOT / "lightning_t2drl").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in BY_NAME:
                read |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
                built = [part for arg in node.args if isinstance(arg, ast.JoinedStr) for part in arg.values]
                ends |= {part.value for part in built if isinstance(part, ast.Constant) and len(part.value) > 1}
    by_name = {"service", "trust", "resume", "checkpoint"} | {f.name for f in dataclasses.fields(ServiceConfig)}
    unread = {
        f"{schema.__name__}.{field.name}"
        for schema in all_schemas()
        for field in dataclasses.fields(schema)
        if field.name != "_target_" and field.name not in read | by_name and not field.name.endswith((*ends, *amounts))
    }
    assert not unread, unread


@pytest.mark.parametrize("command", SCHEMAS)
def test_composed_defaults_are_the_schemas(command):
    """What Hydra composes has exactly the schema's keys: nothing is only in the code, nothing only in YAML."""

    def check(schema, content, where):
        assert set(content) == {field.name for field in dataclasses.fields(schema)}, where
        for field in dataclasses.fields(schema):
            value = content[field.name]
            if isinstance(value, dict) and "_target_" in value:
                check(locate(value["_target_"]).Config, value, f"{where}.{field.name}")
            elif isinstance(value, dict) and dataclasses.is_dataclass(field.default_factory):
                check(field.default_factory, value, f"{where}.{field.name}")

    check(SCHEMAS[command], plain(command=command), command)
    if command not in ("benchmark", "train"):
        return
    chosen = {group: list(options(group)) for group in groups(command) if group != "experiment"}
    for number in range(max(map(len, chosen.values()))):  # one of each group at a time: they are apart from each other
        words = [f"{group}={choices[number % len(choices)]}" for group, choices in chosen.items()]
        if "cacher=ddqn_cooperative" in words:  # only for cells with links
            words += ["env=cells7_cooperative"]
        composed = compose(command, words)
        check(SCHEMAS[command], composed.plain, words)
        if command == "train":
            build_policies(composed.config.env, composed.config.cacher, composed.config.allocator)
    for choice in options("experiment") if command == "train" else ():
        check(SCHEMAS[command], plain(f"experiment={choice}"), choice)


def test_published_figures_and_links_exist():
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").rglob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith(("http", "configuration/", "api/")):  # pages of the site that are made when it is
                assert (page.parent / link).exists(), (page, link)
    assert Path(ROOT / "LICENSE").exists()


# -- words


@pytest.mark.parametrize("text", ["runs/a/frame=000000002.ckpt", "/tmp/a[/x]", "it's, so", "a\\"])
def test_paths_are_taken_as_typed(text):
    assert plain(f"output_dir={text}")["output_dir"] == text


def test_groups_and_keys_together_and_the_last_word_counts():
    assert plain("env=drift", "env.users=3", "env=paper", command="evaluate")["env"]["users"] == 3
    assert plain("++env.users=20")["env"]["users"] == 20
    assert plain("experiment=oracle", "experiment=null")["cacher"]["_target_"].endswith("DDQNCacher")
    learners = plain("suite.learners.t2drl.length=2", command="benchmark")["suite"]["learners"]
    assert learners["t2drl"] == {"experiment": "t2drl", "length": 2}
    assert plain("~suite.fixed.oracle", "suite.best=rcars", command="benchmark")["suite"]["fixed"] == {
        "rcars": ["random", "equal"],
        "schrs": ["popular", "genetic"],
        "popular_exact": ["popular", "exact"],
    }


def test_schemes_are_named_by_the_user_the_experiment_or_the_pair():
    def name(*words, command="train"):
        return plain(*words, command=command)["name"]

    assert name() == "t2drl" and name("experiment=quickstart", "cacher=ddqn") == "quickstart"
    assert name("experiment=quickstart", "cacher=knapsack") == "knapsack+d3pg"
    assert name("allocator/actor=mlp", "allocator/critic=mlp") == "ddqn+d3pg-mlp-mlp"
    assert name("allocator=exact", "name=mine") == "mine"
    assert name(command="evaluate") == "random+equal"
    assert name("cacher._target_=lightning_t2drl.cachers.lru.LRUCacher") == "LRUCacher+d3pg"


def test_another_class_takes_along_no_key_it_does_not_have(tmp_path, monkeypatch):
    (tmp_path / "mine_trunk.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\nclass Config:\n    _target_: str = ''\n    heads: int = 2\n    hidden: int = 8\n"
        "class Attention:\n    Config = Config\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = ["experiment=quickstart", "allocator.actor._target_=mine_trunk.Attention"]
    assert plain(*words)["allocator"]["actor"] == {"_target_": "mine_trunk.Attention"}
    typed = plain(*words, "allocator.actor.heads=4", "~allocator.actor.rounds")["allocator"]["actor"]
    assert typed == {"_target_": "mine_trunk.Attention", "heads": 4}


def test_a_sample_of_the_fuzz():
    found = fuzz(40, seed=3)
    assert found["accepted"] and found["refused"]


# -- files of one's own


def test_a_scenario_by_its_path_builds_on_files_beside_it_and_shipped_ones(tmp_path):
    (tmp_path / "dense.yaml").write_text("defaults:\n  - base\n  - _self_\nusers: 30\n")
    (tmp_path / "base.yaml").write_text("defaults:\n  - drift\n  - _self_\nbandwidth_mhz: 5.0\nname: dense\n")
    path = tmp_path / "dense.yaml"
    config = compose("train", [f"env={path}", "env.alpha=0.3"]).config.env
    assert (config.name, config.users, config.bandwidth_mhz, config.alpha) == ("dense", 30, 5.0, 0.3)
    assert config.ranking == "shuffled"
    assert load_scenario(str(path), alpha=0.3).as_dict() == build_policies(
        config, {"_target_": "lightning_t2drl.cachers.random.RandomCacher"},
        {"_target_": "lightning_t2drl.allocators.equal.EqualAllocator"},
    )[0].as_dict()  # fmt: skip
    (tmp_path / "wrong.yaml").write_text("defaults:\n  - paper\nusrs: 3\n")
    for wrong in (lambda p: compose("train", [f"env={p}"]), lambda p: load_scenario(str(p))):
        with pytest.raises(UserError, match=r"env\.usrs: no such key; the nearest is (env\.)?users"):
            wrong(tmp_path / "wrong.yaml")


def test_a_directory_of_ones_own_comes_before_the_shipped_one(tmp_path):
    for name, text in {
        "env/mine.yaml": "# Mine.\ndefaults:\n  - paper\n  - _self_\nusers: 7\n",
        "experiment/mine.yaml": "# @package _global_\n# Mine.\ndefaults:\n  - rcars\n  - override /env: mine\nframes: 3\n",
        "trainer/cpu.yaml": "# Three threads.\nthreads: 3\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    flag, path = f"--config-dir={tmp_path}", f"hydra.searchpath=[{tmp_path}]"
    for word in (flag, path):
        found = plain(word, "experiment=mine")
        assert (found["env"]["users"], found["frames"], found["trainer"]) == (7, 3, {"threads": 3})
    assert options("env", [str(tmp_path)])["mine"] == "Mine."
    (tmp_path / "trainer/cpu.yaml").write_text("defaults:\n  - gpu\n")
    with pytest.raises(UserError, match="in a circle"):
        plain(flag, "experiment=mine")


# -- checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a tiny run with six users, whose config is as the checkpoint holds it."""
    from lightning_t2drl.run.commands import run
    from tests.conftest import TINY

    directory = tmp_path_factory.mktemp("run")
    words = ["env.users=6", "allocator.decision_samples=3", "evaluation.every_n_frames=0", f"output_dir={directory}"]
    run("train", [*TINY, *words])
    return directory


def test_words_act_on_the_checkpoints_config(checkpoint):
    def sections(*words):
        composed = compose("evaluate", [f"checkpoint={checkpoint}", *words])
        return composed.plain["env"]["users"], composed.plain["allocator"].get("decision_samples"), composed

    assert sections()[:2] == (6, 3)
    assert sections("env=paper", "env.users=3")[:2] == (3, 3)
    assert sections("++env.users=20", "allocator.decision_samples=8")[:2] == (20, 8)
    users, samples, composed = sections("allocator=equal")
    assert (users, samples, composed.exchanged, composed.plain["name"]) == (6, None, {"allocator"}, "t2drl+equal")
    for words, line in {
        ("cacher=random", "cacher.nope=3"): "cacher.nope: no such key",
        ("env=paper", "env.nope=1"): "env.nope: no such key",
        ("allocator.actor.hiddn=3",): "allocator.actor.hiddn: no such key; the nearest is allocator.actor.hidden",
    }.items():
        with pytest.raises(UserError, match=re.escape(line)):
            sections(*words)


def test_a_checkpoint_is_plain_data_and_names_no_class_that_is_not_trusted(checkpoint, monkeypatch):
    from lightning_t2drl.loop import checkpoints as module

    def altered(key, value):
        def resolve(path, say):
            path, content = real(path, say)
            owner = content["lightning_t2drl"]["config"]
            for part in key.split(".")[:-1]:
                owner = owner[part]
            owner[key.split(".")[-1]] = value
            return path, content

        monkeypatch.setattr(module, "resolve", resolve)

    real = module.resolve
    words = [f"checkpoint={checkpoint}"]
    altered("env.name", "${oc.env:HOME}")
    with pytest.raises(UserError, match=r"refused, env\.name of its config is '\$\{oc\.env:HOME\}'"):
        compose("evaluate", words)
    altered("cacher._target_", "this.Zen")
    with pytest.raises(UserError, match=r"its cacher\._target_ is this\.Zen; trust=\[this\] lets that module be"):
        compose("evaluate", words)
    assert compose("evaluate", [*words, "trust=[this]"]).plain["cacher"]["_target_"] == "this.Zen"
    assert compose("evaluate", [*words, "cacher=random"]).exchanged == {"cacher"}
