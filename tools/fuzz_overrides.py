"""Thousands of command lines, right and wrong in every way: each word counts, or one line refuses the command line.

`python -m tools.fuzz_overrides --draws 2000` composes them as the entry points do, builds the policies, and reports how
many were accepted. It fails on an exception that is no `UserError`, on one of more than one line, and on a word that
was accepted and changed nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lightning_t2drl.building import build_policies
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.stored import leaves
from lightning_t2drl.run.choices import groups, options
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.compose import Composed, compose
from lightning_t2drl.run.overrides import expand, parse, read
from lightning_t2drl.run.schemas import SCHEMAS
from lightning_t2drl.suite.benchmark import make_jobs

SMALL = ["frames=1", "env.num_envs=1", "env.slots_per_frame=2", "env.frames_per_episode=1", "progress_bar=false"]
SMALL += ["figures=false", "evaluation.every_n_frames=0", "evaluation.final_episodes=0", "env.users=4"]
WRONG = ["-1", "0", "nan", "1e30", "abc", "null", "[]", "[1,2]", "{}", "{a:1}", "true", "''", "'a b'", "???", "${nope}"]
WRONG += ["${seed}", "1,2", "range(1,3)", "[[1]]", "a=b", "[/x]", "(", "1_000", "0x10"]
TARGETS = ["3", "[a,b]", "nowhere.Nothing", "lightning_t2drl.cachers.random.RandomCacher", "os.path", "null", "abc"]
SECTIONS = ["cacher", "cacher.network", "allocator", "allocator.actor", "allocator.critic", "allocator.head"]
SUBGROUPS = ["allocator/actor", "allocator/critic", "allocator/head", "allocator/diffusion", "cacher/network"]


class Draws:
    """Command lines, the same for the same seed.

    Args:
        seed: of the draws.
        checkpoint: a run's directory, for half of the command lines that may name one.
    """

    def __init__(self, seed: int, checkpoint: Path) -> None:
        self.random = random.Random(seed)
        self.checkpoint = checkpoint
        self.keys = {command: dict(leaves(compose(command, []).plain)) for command in SCHEMAS}

    def line(self) -> tuple[str, list[str]]:
        """A command and its words."""
        command = self.random.choice(list(SCHEMAS))
        words = [self._word(command) for _ in range(self.random.randint(1, 3))]
        if command in ("evaluate", "export") and self.random.random() < 0.6:
            words.insert(self.random.randint(0, len(words)), f"checkpoint={self.checkpoint}")
        return command, words

    def _word(self, command: str) -> str:
        kind = self.random.choices(("key", "group", "target", "odd"), (12, 5, 1, 1))[0]
        if kind == "key":
            return self._on_key(command)
        if kind == "group":
            return self._on_group(command)
        section = self.random.choice(SECTIONS)
        if kind == "target":
            return f"{section}._target_={self.random.choice(TARGETS)}"
        return self.random.choice(
            ["=", "=3", "a", "-x", "--", "~", "+", "env.", ".x=1", "hydra.verbose=true", "a/b=c", "@=1"]
        )

    def _on_key(self, command: str) -> str:
        key, value = self.random.choice(list(self.keys[command].items()))
        key = key.partition(".0")[0] if ".0" in key else key
        if self.random.random() < 0.25:
            key = self._misspelt(key)
        form = self.random.choices(("", "+", "++", "~"), (8, 1, 2, 1))[0]
        if form == "~" and self.random.random() < 0.7:
            return f"~{key}"
        return f"{form}{key}={self._value(value)}"

    def _value(self, value: Any) -> str:
        if self.random.random() < 0.35:
            return self.random.choice(WRONG)
        if isinstance(value, bool):
            return self.random.choice(("true", "false"))
        if isinstance(value, int):
            return str(self.random.choice((value, value + 1, 1, 2)))
        if isinstance(value, float):
            return str(self.random.choice((value, value * 0.9, value * 1.1)))
        return "null" if value is None else f"'{value}'"

    def _on_group(self, command: str) -> str:
        group = self.random.choice([*groups(command), *(SUBGROUPS if command != "benchmark" else ["env"])])
        choice = self.random.choice([*options(group)] or ["x"])
        if self.random.random() < 0.25:
            choice = self.random.choice(
                ["null", "3", self._misspelt(choice), "[a,b]", "nowhere.yaml", "checkpoint", "''"]
            )
        form = self.random.choices(("", "+", "++", "~"), (10, 1, 1, 1))[0]
        return f"~{group}" if form == "~" else f"{form}{group}={choice}"

    def _misspelt(self, name: str) -> str:
        at = self.random.randrange(len(name))
        return self.random.choice((name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name + "s"))


def attempt(command: str, words: Sequence[str]) -> str:
    """Compose, build, and check that every word counts.

    Returns:
        `accepted`, or `refused` by one line.

    Raises:
        AssertionError: a word was ignored, or what refuses is more than one line.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            jobs = expand(words) if any("," in word or "range(" in word for word in words) else [list(words)]
            for job in jobs:
                composed = compose(command, job)
                if command == "benchmark":
                    make_jobs(composed.config)
                elif all(hasattr(composed.config, section) for section in ("env", "cacher", "allocator")):
                    build_policies(composed.config.env, composed.config.cacher, composed.config.allocator)
                ignored = list(ignored_words(composed))
                assert not ignored, f"ignored: {ignored}"
    except UserError as error:
        assert "\n" not in str(error) and str(error).strip(), f"not one line: {error!r}"
        return "refused"
    return "accepted"


def ignored_words(composed: Composed) -> Iterator[str]:
    """Words that the config shows nothing of."""
    parsed = parse(read(composed.arguments).overrides)
    for place, word in enumerate(parsed):
        key = str(word.key_or_group)
        if word.is_hydra_override():
            continue  # of the launcher, which composes a config of its own
        later = [str(other.key_or_group) for other in parsed[place + 1 :]]
        if any(other == key or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in later):
            continue  # a later word on the same key counts
        chooses = key in groups(composed.command) or "/" in key
        there = OmegaConf.select(OmegaConf.create({"of": composed.plain}), "of." + key.replace("/", "."))
        if word.is_delete() or (chooses and word.value() is None):
            if there is not None and not chooses:
                yield str(word.input_line)
        elif chooses:
            continue  # an unknown choice is refused; what it holds, later words may have changed
        elif not _shows(there, word.value(), composed):
            yield str(word.input_line)


def _shows(there: Any, value: Any, composed: Composed) -> bool:
    if OmegaConf.is_config(there):
        there = OmegaConf.to_container(there)
    if isinstance(value, str) and "${" in value:
        return True
    if isinstance(value, dict):
        return all(_shows((there or {}).get(key), inner, composed) for key, inner in value.items())
    if isinstance(value, float) and math.isnan(value):
        return isinstance(there, float) and math.isnan(there)
    return bool(there == value) or (value is None and isinstance(there, str))  # name=null is the pair's


def fuzz(draws: int, seed: int = 0) -> Counter[str]:
    """Try that many command lines.

    Raises:
        AssertionError: one of them was treated wrongly; the message holds it.
    """
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        run("train", [*SMALL, f"output_dir={directory}/run"])
        drawn, found = Draws(seed, Path(directory) / "run"), Counter[str]()
        for _ in range(draws):
            command, words = drawn.line()
            try:
                found[attempt(command, words)] += 1
            except Exception as error:
                found["wrong"] += 1
                reason = "".join(traceback.format_exception(error)[-3:])
                print(f"t2drl {command} {words}: {reason}", file=sys.stderr)
    assert not found["wrong"], f"{found['wrong']} command lines were treated wrongly"
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz_overrides", description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=2000, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    given = parser.parse_args()
    start = time.perf_counter()
    outcome = fuzz(given.draws, given.seed)
    print(f"{dict(outcome)} of {given.draws} command lines in {time.perf_counter() - start:.0f} s; none ignored a word")
