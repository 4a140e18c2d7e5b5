"""The page of t2drl view: what was lost adds up, the page holds what was played, and a browser opens it without errors."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pyarrow
import pytest
from pyarrow import parquet

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.records import FILES, read_records
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.view import LOSSES, read_played, read_scenario
from lightning_t2drl.system import load_scenario

SMALL = ["env.frames_per_episode=2", "env.slots_per_frame=2", "progress_bar=false", "oracle_slots=8", "episodes=2"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module", params=["paper", "cells3"])
def view(request, tmp_path_factory):
    cells = ["env=cells3", "env.users=6", "env.active_users=[4,6]"] if request.param == "cells3" else ["env.users=4"]
    models = ["env.model_storage_gb=[4,6,8]", "env.storage_capacity_gb=10"]
    where = tmp_path_factory.mktemp("view") / "page"
    return run("view", [*cells, *models, *SMALL, "cacher=random", "allocator=equal", f"output_dir={where}"])


def content_of(view):
    text = re.search(r'id="data">(.*?)</script>', view.page.read_text(), re.S).group(1)
    return json.loads(text)


def test_losses_add_up_to_the_distance_from_the_bound(view):
    cells = {name: np.array(values) / 1e4 for name, values in content_of(view)["per_cell"].items()}
    assert cells["bound"].shape == (2, 4, content_of(view)["sizes"]["cells"])
    lost = sum(cells[name] for name in LOSSES)
    there = cells["bound"] != 0
    assert np.abs(lost - (cells["bound"] - cells["utility"]))[there].max() < 4e-4
    assert cells["unproven"].max() < 0.02  # the exact allocation is near its bound
    assert cells["cache"].min() >= 0 and cells["unproven"].min() >= -1e-4 and lost[there].min() >= -1e-4


def rewritten(path, change, metadata=None):
    """A Parquet file with other rows, or with other facts."""
    table = parquet.read_table(path)
    changed = pyarrow.Table.from_pandas(change(table.to_pandas()), preserve_index=False)
    parquet.write_table(changed.replace_schema_metadata(metadata or table.schema.metadata), path)


DAMAGE = {
    "damaged, or no Parquet": lambda path: path.write_bytes(path.read_bytes()[:400]),
    "no records": lambda path: path.unlink(),
    "has no column gain": lambda path: rewritten(path, lambda rows: rows.drop(columns="gain")),
    "what cannot be": lambda path: rewritten(path, lambda rows: rows.assign(user=99)),
    "has 1 rows of": lambda path: rewritten(path.with_name(FILES[1]), lambda rows: rows[:1]),
    "not written by evaluate": lambda path: rewritten(path, lambda rows: rows, {b"lightning_t2drl": b"{"}),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_damaged_records_are_named_in_one_line(view, said, tmp_path):
    records = shutil.copytree(view.page.parent / "records", tmp_path / "records")
    DAMAGE[said](records / FILES[0])
    with pytest.raises(UserError, match=said) as raised:
        read_played(records, 2)
    assert "\n" not in str(raised.value)


def test_slots_in_which_nobody_asks_are_played_too(view, tmp_path):
    records = shutil.copytree(view.page.parent / "records", tmp_path / "records")
    rewritten(records / FILES[0], lambda rows: rows[rows["slot"] < 3])
    played = read_played(records, 2)
    assert len(played.attached) == 4 and not played.attached[3].any()


def test_the_page_holds_what_was_played_and_needs_no_network(view):
    content, (slots, _) = content_of(view), read_records(view.page.parent / "records")
    sizes = [content["sizes"][name] for name in ("worlds", "slots", "users")]
    arrays = {
        name: np.frombuffer(base64.b64decode(text), "u1" if name in ("cell", "source", "late") else "u2").reshape(sizes)
        for name, text in content["arrays"].items()
    }
    row = slots.iloc[5]
    place = int(row["world"]), int(row["slot"]), int(row["user"])
    assert arrays["cell"][place] == row["cell"] and arrays["model"][place] == row["model"]
    for name, precision in (("x", 0.1), ("bandwidth", 0.01), ("steps", 0.1)):
        low, step = content["scale"][name]
        expected = row[name] * (100 if name == "bandwidth" else 1)
        assert low + step * arrays[name][place] == pytest.approx(expected, abs=precision)
    page = view.page.read_text()
    body = page[: page.index("<script>")] + page[page.index("</script>") :]
    assert not re.search(r"(src|href)=\"?http", body)


def test_ten_episodes_of_seven_cells_take_less_than_ten_megabytes(view):
    """What the page holds per user and slot, taken to that size, and what it always holds."""
    content = content_of(view)
    rows = content["sizes"]["worlds"] * content["sizes"]["slots"] * content["sizes"]["users"]
    per_row = sum(map(len, content["arrays"].values())) / rows
    large = load_scenario("cells7")
    per_cell = 12 * len(content["per_cell"]) * large.cells  # a number of up to four digits, its comma, its sign
    per_slot = per_row * large.users + per_cell
    page = view.page.stat().st_size - sum(map(len, content["arrays"].values()))
    assert page + 10 * large.slots_per_episode * per_slot < 10e6


def test_the_oracles_caches_are_those_recorded(view, tmp_path):
    slots, frames = (view.page.parent / "records" / name for name in FILES)
    table = pd.read_parquet(frames)

    def shown(content):
        where = zip(table["world"], table["frame"], table["cell"], strict=True)
        return [content["oracle"][world][frame][cell] for world, frame, cell in where]

    assert shown(content_of(view)) == [list(models) for models in table["oracle_cache"]]
    (tmp_path / slots.name).symlink_to(slots)
    table["oracle_cache"] = [[row % 3] for row in range(len(table))]
    table.to_parquet(tmp_path / frames.name)
    again = run("view", [str(tmp_path), f"output_dir={tmp_path}/again", "progress_bar=false", "oracle_slots=8"])
    assert shown(content_of(again)) == table["oracle_cache"].tolist()
    without = run("view", [str(tmp_path), f"output_dir={tmp_path}/without", "progress_bar=false", "oracle_slots=0"])
    assert content_of(without)["oracle"] is None and "cache" not in without.losses  # unknown is not 0


def test_scenarios_come_back_from_records():
    for name in ("paper", "cells3"):
        scenario = load_scenario(name)
        assert read_scenario(json.loads(json.dumps(scenario.as_dict()))) == scenario


def test_without_records_a_line_says_so(tmp_path):
    with pytest.raises(UserError, match="no records"):
        run("view", [str(tmp_path), f"output_dir={tmp_path}/out"])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_opens_it_and_the_slider_moves(view, tmp_path):
    if len(content_of(view)["sites"]) == 1:
        pytest.skip("one page is enough")
    probe = """<script>
      window.addEventListener("error", event => { document.title = "error: " + event.message; });
      console.error = text => { document.title = "error: " + text; };
    </script>"""
    moves = """<script>
      const before = document.getElementById("where").textContent, slider = document.getElementById("slot");
      slider.value = 3; slider.dispatchEvent(new Event("input"));
      const cell = document.getElementById("cell"); cell.value = 1; cell.dispatchEvent(new Event("input"));
      if (!document.title.startsWith("error")) document.title = before + " -> " + document.getElementById("where").textContent +
        ", bars " + document.querySelectorAll(".plot .main-svg").length;
    </script>"""
    page = view.page.read_text().replace("<head>", f"<head>{probe}", 1).replace("</body>", f"{moves}</body>", 1)
    (tmp_path / "page.html").write_text(page)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *options, f"file://{tmp_path}/page.html"], capture_output=True, text=True, timeout=120
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout).group(1)
    assert re.fullmatch(r"slot 0 of 4, frame 0 -&gt; slot 3 of 4, frame 1, bars \d+", title), title
    assert int(title.split()[-1]) >= 6
