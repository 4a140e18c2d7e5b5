"""Composes the configuration of a command line with Hydra; every command, sweep and checkpoint gets it here.

Needs no PyTorch but to read a checkpoint, so that a mistake is told at once.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lightning_t2drl.checks import listing, nearest
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.stored import KEY, OWN, leaves, refuse_foreign, stored_sections
from lightning_t2drl.registry import locate, typed
from lightning_t2drl.run import renamed
from lightning_t2drl.run.choices import Nodes, file_choice, groups, no_such_choice, offered, primary
from lightning_t2drl.run.overrides import parse, quote, read, split
from lightning_t2drl.run.schemas import SCHEMAS, EnvConfig
from lightning_t2drl.system.catalogue import CONFIG_ROOT, read_catalogue
from lightning_t2drl.system.keys import PARTS, refuse_idle

PAIR = ("cacher", "allocator")
STORED = "checkpoint"  # the choice of env, cacher and allocator that a checkpoint stands for
TARGET = "_target_"
SEARCHPATH = "hydra.searchpath"
# `channel=umi` and `env.channel=umi` choose as `env/channel=umi` does.
SHORT = {f"{start}{part}": f"env/{part}" for part in PARTS for start in ("", "env.")}
REFUSALS = (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError)
OPEN = ("env.demand.columns", "env.mobility.columns")  # groups of keys of the user's own

Plain = dict[str, Any]
Result = tuple[Plain, dict[str, str]]  # a composed config, and what was chosen of each group


@dataclass(frozen=True)
class Word:
    """A word as typed.

    Args:
        override: it, in Hydra's grammar.
        key: with dots.
        choice: what Hydra gets for it, of a word that chooses from a group; None of one on a key.
        new: whether the key need not be there yet.
    """

    override: Override
    key: str
    choice: str | None = None
    new: bool = False

    @property
    def chooses(self) -> bool:
        return self.choice is not None

    @property
    def target(self) -> bool:
        return self.key.endswith(f".{TARGET}") and not self.override.is_delete()

    def under(self, section: str) -> bool:
        """Whether its key is a section or lies in it."""
        return self.key == section or self.key.startswith(f"{section}.")


@dataclass(frozen=True)
class Composed:
    """A checked configuration and where it comes from.

    Args:
        command: the entry point.
        arguments: what was typed after it.
        config: an instance of the command's schema.
        plain: the same as plain data, interpolations resolved.
        checkpoint: the file that `checkpoint=` names and its content, None without one.
        exchanged: of cacher and allocator, those that are not the checkpoint's.
        launcher: words on the launcher of the jobs, of a command that has some.
    """

    command: str
    arguments: tuple[str, ...]
    config: Any
    plain: Plain
    checkpoint: tuple[Path, Plain] | None
    exchanged: frozenset[str]
    launcher: tuple[str, ...]


def compose(command: str, arguments: Sequence[str], say: Callable[[str], None] = print) -> Composed:
    """Compose and check what a command line asks for; writes nothing.

    With `checkpoint=`, the checkpoint's own env, cacher and allocator are the defaults that the words act on.

    Args:
        command: `train`, `evaluate`, `benchmark`, `export` or `calibrate`.
        arguments: what was typed after it.
        say: told of anything worth a remark, such as a damaged checkpoint that is skipped.

    Raises:
        UserError: a word that cannot be applied; one line that names it, and the nearest name there is.
    """
    given = read(arguments)
    launcher, own = split(given.overrides)
    if launcher and command != "benchmark":  # which is a sweep by itself
        raise UserError(f"{launcher[0]}: belongs to sweeps; add -m")
    parsed = parse(own)
    directories = [*given.config_dirs, *_searchpath(parsed)]
    checkpoint = _checkpoint(command, parsed, say)
    stored = {} if checkpoint is None else stored_sections(checkpoint[1], checkpoint[0])
    nodes: Nodes = {(section, STORED): content for section, content in stored.items()}
    if "env" in stored:
        nodes |= _with_parts(stored["env"])
    words = _words(command, parsed, directories, nodes)
    aside = {word.key: word.override.value() for word in words if _like_a_group(word, command)}
    words = [word for word in words if word.key not in aside]

    def run(some: Sequence[Word]) -> Result:
        begun = [f"{section}={STORED}" for section in stored if not any(w.chooses and w.key == section for w in some)]
        config, choices = chosen((*begun, *(word.choice for word in some if word.choice is not None)))
        return _with_values(config, [word for word in some if not word.chooses]), choices

    @functools.cache
    def chosen(choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
        if nodes or directories or any("${" in choice for choice in choices):
            return _hydra(command, choices, directories)
        return _shipped(command, choices)

    with offered(nodes):
        try:
            plain, choices = run(words)
        except _NoSuchKeyError as error:
            raise UserError(_no_such_key(command, str(error), _known(words, run))) from None
        plain |= aside
        its = [section for section in stored if choices.get(section) == STORED]
        if checkpoint is not None:
            said = tuple(f"{w.key}." for w in words if w.chooses)
            kept = {k: v for k, v in leaves({s: plain[s] for s in its}) if not k.startswith(said)}
            kept = {k: v for k, v in kept.items() if not any(w.key == k for w in words)}
            refuse_foreign(kept, plain.get("trust") or (), checkpoint[0])
        if "name" in plain and PAIR[0] in plain:
            saved = None if checkpoint is None else checkpoint[1][KEY]["config"].get("name")
            plain["name"] = _name(words, (plain, choices), run, saved)
        _exchange_targets(plain, words, run)
    _fill_catalogue(plain, words, directories)
    _refuse_left_out(command, plain, words)
    exchanged = {s for s in PAIR if s in stored and (s not in its or plain[s].get(TARGET) != stored[s][TARGET])}
    config = typed(SCHEMAS[command], plain, "")
    return Composed(command, tuple(arguments), config, plain, checkpoint, frozenset(exchanged), tuple(launcher))


# -- before Hydra


def _searchpath(parsed: Sequence[Override]) -> list[str]:
    """The directories and packages of `hydra.searchpath=[...]`."""
    found: list[str] = []
    for override in parsed:
        if override.key_or_group == SEARCHPATH:
            value = override.value()
            if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
                raise UserError(f"{SEARCHPATH}: {value!r} is no list of directories")
            if missing := [entry for entry in value if "://" not in entry and not Path(entry).is_dir()]:
                raise UserError(f"{SEARCHPATH}: {missing[0]} is no directory")
            found += [entry if "://" in entry else str(Path(entry).absolute()) for entry in value]
    return found


def _checkpoint(command: str, parsed: Sequence[Override], say: Callable[[str], None]) -> tuple[Path, Plain] | None:
    """The file that `checkpoint=` names, read."""
    named = [o.value() for o in parsed if o.key_or_group == "checkpoint" and not o.is_sweep_override()]
    if "checkpoint" not in {field.name for field in fields(SCHEMAS[command])} or not named or named[-1] is None:
        return None
    from lightning_t2drl.loop.checkpoints import resolve  # and with it PyTorch

    return resolve(str(named[-1]), say)


def _with_parts(env: Plain) -> Nodes:
    """A checkpoint's env as choices: what it holds of `PARTS` are choices of groups, so that words can make others.

    Keys that it does not have yet are at their defaults.
    """
    groups: Nodes = {(f"env/{part}", STORED): env.get(part) or {TARGET: target} for part, target in PARTS.items()}
    rest = {key: value for key, value in (asdict(EnvConfig()) | env).items() if key not in PARTS}
    return {("env", STORED): {"defaults": [*({part: STORED} for part in PARTS), "_self_"], **rest}, **groups}


def _words(command: str, parsed: Sequence[Override], directories: Sequence[str], nodes: Nodes) -> list[Word]:
    """The words for Hydra: of several choices of one group the last, files by path as choices of their own."""
    known = groups(command)
    words: list[Word] = []
    for override in parsed:
        name, line = str(override.key_or_group), str(override.input_line)
        if name == SEARCHPATH:
            continue
        if not name:
            raise UserError(f"{line}: names no key")
        if override.is_sweep_override():
            raise UserError(f"{line}: several values need -m; a list is written [1,2]")
        if name in SHORT and isinstance(override.value(), str):
            override = replace(override, key_or_group=SHORT[name], input_line=f"{SHORT[name]}={line.partition('=')[2]}")
            name, line = SHORT[name], str(override.input_line)
        chooses = name in known or "/" in name
        if chooses:
            words = [word for word in words if word.override.key_or_group != name]
        choice = _choice(name, override, known, directories, nodes) if chooses else None
        words.append(Word(override, name.replace("/", "."), choice))
    # The keys of a class that the user names are not yet known here: they may be new.
    sections = [word.key.removesuffix(f".{TARGET}") for word in words if word.target]
    sections += OPEN
    return [
        replace(word, new=any(word.under(section) for section in sections) or _of_an_entry(command, word.key))
        for word in words
    ]


def _like_a_group(word: Word, command: str) -> bool:
    """Whether a key is named like a folder of configs, such as `service` of `calibrate`: Hydra would look there."""
    own = word.key in {field.name for field in fields(SCHEMAS[command])} and not word.chooses
    return own and not word.override.is_delete() and (CONFIG_ROOT / word.key).is_dir()


def _of_an_entry(command: str, key: str) -> bool:
    """Whether the schema has this key in the entries of a mapping, which need not write it out."""
    kind: Any = SCHEMAS[command]
    parts = key.split(".")
    for at, part in enumerate(parts):
        if get_origin(kind) is dict:
            entry = get_args(kind)[1]
            return is_dataclass(entry) and at + 2 == len(parts) and parts[-1] in {field.name for field in fields(entry)}
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return False


def _choice(
    group: str, override: Override, known: dict[str, str | None], directories: Sequence[str], nodes: Nodes
) -> str:
    """What Hydra is told for a word on a group.

    Raises:
        UserError: it is no choice that Hydra could make.
    """
    line, value = str(override.input_line), override.value()
    if (
        group in known
        and known[group] is not None
        and (override.is_delete() or value is None)
        and group != "experiment"
    ):
        raise UserError(f"{line}: one is needed; {no_such_choice(group, 'null', directories).partition('; ')[2]}")
    if override.is_delete():
        return line
    if value is None and group in known:
        return f"~{group}"
    if not isinstance(value, str):
        raise UserError(no_such_choice(group, value, directories))
    if group in known and (override.is_add() or override.is_force_add()):
        raise UserError(f"{line}: leave out the +; {group}={value} chooses")
    if value.endswith((".yaml", ".yml")):
        value = file_choice(group, Path(value), nodes, directories)
    return f"{'+' if override.is_add() else ''}{group}={value}"


# -- Hydra


class _NoSuchKeyError(Exception):
    """A word on a key that the composed config does not have."""


@functools.lru_cache(maxsize=256)
def _shipped(command: str, choices: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    """What shipped files and these choices alone compose: the same at any time."""
    return _hydra(command, choices, ())


def _hydra(command: str, words: Sequence[str], directories: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """Compose what is chosen, and name the choices; a user's directories come before the shipped one.

    Raises:
        UserError: anything that Hydra or OmegaConf cannot do, in one line.
    """
    local = [entry for entry in directories if "://" not in entry]
    main, *others = [*local, str(CONFIG_ROOT)]
    others += [entry for entry in directories if "://" in entry]
    nodes: Nodes = {}
    if others:
        words = [f"{SEARCHPATH}=[{','.join(quote(entry) for entry in others)}]", *words]
        nodes = {("", command): primary(command)}  # which Hydra does not look for in its searchpath
    GlobalHydra.instance().clear()
    try:
        with offered(nodes), hydra.initialize_config_dir(main, version_base="1.3"):
            composed = hydra.compose(command, overrides=list(words), return_hydra_config=True)
            choices = dict(composed.hydra.runtime.choices)
            with open_dict(composed):
                del composed["hydra"]
    except RecursionError:
        raise UserError("defaults: files of configs build on each other in a circle") from None
    except REFUSALS as error:
        raise _explained(error, directories) from None
    return composed, choices


def _with_values(chosen: DictConfig, words: Sequence[Word]) -> Plain:
    """A composed config as plain data, with what words say of its keys.

    Hydra would do the same after every composition; apart from it, jobs with the same choices are composed once.

    Raises:
        _NoSuchKeyError: a word changes a key that is not there.
        UserError: anything else that OmegaConf cannot do, in one line.
    """
    config = copy.deepcopy(chosen)
    for word in words:
        try:
            _set(config, word)
        except (ConfigAttributeError, ConfigKeyError) as error:  # of a mapping, the entry that is not there
            inner = str(error.full_key or "")
            raise _NoSuchKeyError(inner if inner.startswith(f"{word.key}.") else word.key) from None
        except OmegaConfBaseException:
            raise UserError(f"{word.key}: a group of keys stands there; set the keys in it") from None
        except REFUSALS as error:
            raise _explained(error, ()) from None
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except REFUSALS as error:
        raise _explained(error, ()) from None
    return plain


def _set(config: DictConfig, word: Word) -> None:
    """Change, add or delete a key."""
    override, value = word.override, word.override.value()
    present = OmegaConf.select(config, word.key)
    if override.is_delete():
        if present is None:
            raise _NoSuchKeyError(word.key)
        if value is not None and value != present:
            raise UserError(f"{override.input_line}: its value is {present}; ~{word.key} leaves it out")
        path, _, last = word.key.rpartition(".")
        owner: Any = OmegaConf.select(config, path) if path else config
        with open_dict(config):
            del owner[last]
    elif override.is_add() and present is not None and not isinstance(value, (dict, list)):
        raise UserError(f"{override.input_line}: the key is there already; leave out the +")
    else:
        new = word.new or override.is_add() or override.is_force_add()
        OmegaConf.update(config, word.key, value, force_add=new)


def _explained(error: Exception, directories: Sequence[str]) -> Exception:
    """Hydra's message of many lines in one: the key or group, and the choices."""
    text = str(error)
    if missing := re.search(r"Could not find '(.+)/(.*)'", text):
        return UserError(no_such_choice(missing[1], missing[2], directories))
    if missing := re.search(r"In '(.+?)': Could not load '(.+)/(.*?)'", text):
        return UserError(f"{missing[1]}: its defaults name {no_such_choice(missing[2], missing[3], directories)}")
    if missing := re.search(r"Could not (?:override|append to|delete from) '(.+?)'\.", text):
        return _NoSuchKeyError(missing[1])
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("See http")]
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return UserError(f"{error.full_key}: {lines[0]}")
    return UserError(" ".join(lines) or type(error).__name__)


def _known(words: Sequence[Word], run: Callable[[Sequence[Word]], Result]) -> list[str]:
    """The keys there are with the words that choose; none where these do not fit together."""
    try:
        return [key for key, _ in leaves(run([w for w in words if w.chooses and "." not in w.key])[0])]
    except _NoSuchKeyError:
        return []


def _no_such_key(command: str, key: str, known: list[str]) -> str:
    if new := renamed.KEYS.get(key):
        return f"{key}: renamed; the key is {new} now"
    if "/" in key:
        return f"{key}: no such group to choose from in what is composed here"
    kind: Any = SCHEMAS[command]
    for part in key.split(".")[:-1]:
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    if get_origin(kind) is dict:
        return f"{key}: there is none yet; +{key}=... adds it{nearest(key, known)}"
    return f"{key}: no such key{nearest(key, known) or _beside(command, key, known)}"


def _beside(command: str, key: str, known: list[str]) -> str:
    """What there is where a key was looked for, or in the innermost section around it that there is."""
    section = key
    while section:
        section = section.rpartition(".")[0]
        start = f"{section}." if section else ""
        if names := dict.fromkeys(name[len(start) :].partition(".")[0] for name in known if name.startswith(start)):
            names.pop(TARGET, None)
            return f"; {section or command} has {listing(names) or 'no keys'}"
    return ""


# -- after Hydra


def _section(plain: Any, key: str) -> Any:
    """What stands at a dotted key; None where nothing does."""
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _fill_catalogue(plain: Plain, words: Sequence[Word], directories: Sequence[str]) -> None:
    """Put what a named catalogue holds in the place of its name, so that the config is whole. Changes `plain`."""
    env = plain.get("env")
    if isinstance(env, dict):
        env["catalogue"] = read_catalogue(env.get("catalogue"), [d for d in directories if "://" not in d])
        refuse_idle(env, [word.key.removeprefix("env.") for word in words if word.key.startswith("env.")])


def _exchange_targets(plain: Plain, words: Sequence[Word], run: Callable[[Sequence[Word]], Result]) -> None:
    """Where a word names another class for a section, only its keys stay: those typed, and those it has in common.

    A class whose `Config` extends the former one's keeps all keys. Changes `plain`.
    """
    for word in sorted((word for word in words if word.target), key=lambda word: word.key.count(".")):
        key, value = word.key.removesuffix(f".{TARGET}"), word.override.value()
        if not isinstance(value, str):
            raise UserError(f"{word.key}: {value!r} is no class, such as mine.MyCacher")
        section = _section(plain, key)
        before = _section(run([other for other in words if not other.under(key) or other.chooses])[0], key)
        if section is None or not isinstance(before, dict) or before.get(TARGET) == value:
            continue
        config = locate(value, word.key).Config
        own = str(before.get(TARGET)).startswith(OWN)  # a foreign one is not imported for this
        extends = own and issubclass(config, locate(before[TARGET], word.key).Config)
        said = {other.key[len(key) + 1 :].split(".")[0] for other in words if other.under(key)}
        for name in set(section) - said - {field.name for field in fields(config) if extends}:
            del section[name]


def _refuse_left_out(command: str, plain: Plain, words: Sequence[Word]) -> None:
    """Refuse `~key` where that key would come back with a default of its own."""
    for word in words:
        if word.override.is_delete() and not word.chooses:
            *path, last = word.key.split(".")
            owner: Any = SCHEMAS[command]
            for at, part in enumerate(path):
                section = _section(plain, ".".join(path[: at + 1]))
                owner = get_type_hints(owner).get(part) if is_dataclass(owner) else None
                if isinstance(section, dict) and TARGET in section:
                    owner = locate(section[TARGET], word.key).Config
            if is_dataclass(owner) and last in {field.name for field in fields(owner)}:
                raise UserError(f"{word.override.input_line}: this key cannot be left out; set it instead")


def _name(
    words: Sequence[Word], composed: Result, run: Callable[[Sequence[Word]], Result], saved: str | None
) -> str | None:
    """What the scheme is called: as the user says; as its experiment or checkpoint says, while the pair is theirs; or
    by the pair, such as `ddqn+d3pg`.
    """
    plain, choices = composed
    said = [word for word in words if word.key == "name" and not word.override.is_delete()]
    if said and plain["name"] is not None:
        return plain["name"]
    changed = [word for word in words if any(word.under(s) for s in PAIR) and (word.target or word.chooses)]
    kept = saved or plain["name"]
    if kept is not None and (
        not changed or _kind(*composed) == _kind(*run([w for w in words if not any(w.under(s) for s in PAIR)]))
    ):
        return kept
    return "+".join(_label(section, choices, words, saved) for section in PAIR)


def _kind(plain: Plain, choices: dict[str, str]) -> Plain:
    """What makes a pair another one: its choices and its classes."""
    pair = {section: plain.get(section) for section in PAIR}
    classes = {key: value for key, value in leaves(pair) if key.endswith(f".{TARGET}")}
    return classes | {group: choice for group, choice in choices.items() if group.split("/")[0] in PAIR}


def _label(section: str, choices: dict[str, str], words: Sequence[Word], saved: str | None) -> str:
    """`d3pg`, `MyAllocator`, or, with a part exchanged, `d3pg-mine`."""
    chosen = str(choices.get(section))
    parts = [saved if saved and chosen == STORED else chosen]
    for word in words:
        if word.under(section) and word.key != section and (word.chooses or word.target):
            name = str(word.override.value()).rpartition(".")[2]
            parts = [name, *parts[1:]] if word.key == f"{section}.{TARGET}" else [*parts, name]
    return "-".join(parts)
