"""t2drl compare: names as typed, intervals worked out by hand."""

import json

import numpy as np
import pytest

from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import run, spelt_out
from lightning_t2drl.suite.compare import gather, notes


def evaluation(path, utilities, name="t2drl", **played):
    """An `evaluation.json` with these episodes' utilities."""
    values = np.array(utilities)
    metric = {"mean": values.mean(), "standard_error": values.std(ddof=1) / len(values) ** 0.5, "episodes": utilities}
    content = {
        "name": name,
        "scenario": "paper",
        "episodes": len(values),
        "seed": 1,
        "schemes": {name: {"utility": metric}},
    } | played
    path.mkdir()
    (path / "evaluation.json").write_text(json.dumps(content))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluation(tmp_path / "a", [0.5, 0.6, 0.7])
    evaluation(tmp_path / "b", [0.51, 0.62, 0.73])
    return tmp_path


def test_words_that_are_no_keys_are_runs():
    words = spelt_out("compare", ["a", "ours=b", "x=frame", "--config-dir=."])
    assert words[1:] == ["x=frame", "runs=['a','ours=b']"]


def test_episodes_on_the_same_worlds_are_compared_pair_by_pair(here):
    found = run("compare", ["base=a", "ours=b", "figures=false", "output_dir=c"])
    ours = found.table.set_index("name").loc["ours"]
    assert (ours["value"], ours["difference"]) == (pytest.approx(0.62), pytest.approx(0.02))
    each = np.array([0.01, 0.02, 0.03])
    assert ours["difference_high"] - ours["difference"] == pytest.approx(4.3027 * each.std(ddof=1) / 3**0.5, rel=1e-4)
    assert "| ours | 1 | 0.6200" in (here / "c" / "comparison.md").read_text()


def test_references_of_different_worlds_are_left_out(here):
    worse = {"references": {"rcars": {"utility": {"mean": 0.3, "standard_error": 0.1}}}}
    evaluation(here / "d", [0.5, 0.6, 0.7], **worse)
    evaluation(here / "e", [0.5, 0.6, 0.7], **worse)
    assert "rcars" in set(run("compare", ["p=d", "q=e", "figures=false", "output_dir=c"]).table["name"])
    (here / "f").mkdir()
    (here / "f" / "evaluation.json").write_text(
        (here / "e" / "evaluation.json").read_text().replace('"paper"', '"drift"')
    )
    assert set(run("compare", ["p=d", "q=f", "figures=false", "output_dir=g"]).table["name"]) == {"p", "q"}
    assert "- rcars and oracle differ between them and are left out" in (here / "g" / "comparison.md").read_text()


def test_a_service_that_nobody_asked_for_has_no_mean_and_is_left_out(here):
    metric = {"mean": None, "standard_error": None, "episodes": []}
    content = json.loads((here / "b" / "evaluation.json").read_text())
    content["schemes"]["t2drl"] |= {"hit_ratio/text": metric, "hit_ratio": metric}
    (here / "b" / "evaluation.json").write_text(json.dumps(content))
    table = run("compare", ["p=a", "q=b", "output_dir=c"]).table
    assert set(table["metric"]) == {"utility"} and "| q | 1 | 0.6200" in (here / "c" / "comparison.md").read_text()


def test_a_name_given_twice_is_one_scheme_and_nameless_twins_keep_their_paths(here):
    assert {name: len(s) for name, s in gather(["all=a", "all=b"]).items()} == {"all": 2}
    assert list(gather(["*"])) == ["a", "b"]
    assert list(gather(["a"])) == ["t2drl"]


def test_a_curve_without_a_number_is_left_out(here):
    (here / "run").mkdir()
    (here / "run" / "evaluations.csv").write_text("frame,slots,utility,hit_ratio\n2,4,nan,0.5\n")
    run("compare", ["a", "run", "output_dir=c"])
    assert (here / "c" / "curves.png").stat().st_size > 0


def test_scenarios_of_one_name_with_other_values_are_other_worlds(here):
    evaluation(here / "more", [0.3, 0.4, 0.5], users=20, values="0a")
    evaluation(here / "other", [0.3, 0.4, 0.6], users=20, values="0b")
    assert notes(gather(["a", "b"])) == []
    assert "paper; 3; 1; 20; 0a | paper; 3; 1; 20; 0b" in notes(gather(["x=more", "y=other"]))[0]


def test_mistakes_end_in_one_line(here):
    (here / "empty").mkdir()
    (here / "odd.json").write_text("[1, 2")
    (here / "odd.csv").write_text("a,b\n1,2\n")
    for words, said in (
        (["outputdir=x"], "nearest is output_dir"),
        (["empty"], "empty: holds nothing"),
        (["odd.json"], "odd.json"),
        (["odd.csv"], "odd.csv: nothing that can be compared"),
        ([], "runs: missing"),
    ):
        with pytest.raises(UserError, match=said):
            gather(words)
