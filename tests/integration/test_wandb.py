"""Weights & Biases without network or account: what a run leaves for `wandb sync`, and what it must not."""

import json
import struct
import time

import pytest
import yaml
from wandb.proto import wandb_internal_pb2
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from benchmarks.survival import RUN, finish, start
from lightning_t2drl.building import build_policies
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.loggers import FrameCSVLogger, FrameWandbLogger
from lightning_t2drl.run.schemas import TrainConfig
from lightning_t2drl.suite.sources import read_source
from lightning_t2drl.system.scenario_config import CONFIG_ROOT
from tests.limits import seconds

API_KEY = "5ec7e7" + "0123456789abcdef" * 2 + "ab"
BLOCK = 32768  # W&B's transaction log is framed as LevelDB's: checksum, length and kind before every piece


def records(path):
    """What a .wandb file holds, as (type, record)."""
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            record = wandb_internal_pb2.Record.FromString(whole)
            yield record.WhichOneof("record_type"), getattr(record, record.WhichOneof("record_type"))
            whole = b""


def of(kind, logged):
    return [content for name, content in logged if name == kind]


def rows(logged):
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in h.item}
        for h in of("history", logged)
    ]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("wandb") / "run"


@pytest.fixture
def sessions(output, run_train, monkeypatch, capfd):
    """The records of a run and of its resumption; nothing of W&B is printed, and the key is nowhere."""
    if not output.exists():
        monkeypatch.setenv("WANDB_API_KEY", API_KEY)
        arguments = [
            "experiment=quickstart",
            "logger=wandb",
            "logger.offline=true",
            "logger.tags=[a,b]",
            "figures=true",
        ]
        arguments += ["logger.group=g", "logger.job_type=sweep", "evaluation.final_episodes=2", f"output_dir={output}"]
        run_train(*arguments, "frames=4")
        run_train(*arguments, "resume=auto")
        printed = "".join(capfd.readouterr())
        assert "\nwandb:" not in printed and API_KEY not in printed
    return [list(records(path)) for path in sorted(output.glob("wandb/offline-run-*/*.wandb"))]


def test_compare_reads_from_an_offline_run_what_the_tables_hold(sessions, output, tmp_path):
    path = sorted(output.glob("wandb/offline-run-*"))[-1]
    (own,), (sent,) = read_source(output), read_source(path)
    both = own.curve.merge(sent.curve, on=["frame", "slots"], suffixes=("", "_sent"))
    assert len(both) and both["utility"].tolist() == pytest.approx(both["utility_sent"].tolist())
    assert sent.metrics["hit_ratio"]["mean"] == pytest.approx(own.metrics["hit_ratio"]["mean"])
    found = run("compare", [f"own={output}", f"sent={path}", f"output_dir={tmp_path}/out"])
    assert {"curves.png", "comparison.png", "comparison.csv"} <= {file.name for file in found.output_dir.iterdir()}


def test_one_run_with_its_labels_however_often_it_is_resumed(sessions, output):
    assert len(sessions) == 2
    for logged in sessions:
        (run,) = of("run", logged)
        assert run.run_id == json.loads((output / "run.json").read_text())["run_id"]
        assert (run.run_group, run.job_type, list(run.tags)) == ("g", "sweep", ["a", "b"])
        assert (run.project, run.display_name) == ("lightning-t2drl", "quickstart-seed0")
        assert of("exit", logged)[-1].exit_code == 0


def test_config_and_metrics_are_logged_against_frame_and_slots(sessions, output):
    for logged, frames in zip(sessions, ([0, 1, 2, 3, 4], [5, 6]), strict=True):
        defined = {(m.name or m.glob_name): m.step_metric for m in of("metric", logged)}
        assert defined == {"frame": "", "slots": "frame", "*": "frame"}
        config = {u.key: json.loads(u.value_json) for c in of("config", logged) for u in c.update}
        assert config["run_id"] == json.loads((output / "run.json").read_text())["run_id"]
        assert config["env"]["users"] == 10 and config["loop"]["slot_batch_size"] == 8
        table = rows(logged)
        assert [row["frame"] for row in table if "slots" in row] == frames
        for row in table:
            if "utility" in row or "evaluation/utility" in row:
                assert row["slots"] == row["frame"] * 4 * 3
        assert any("allocator/critic_loss" in row for row in table)


def test_figures_and_the_last_checkpoint_are_uploaded(sessions, output):
    for logged, frame in zip(sessions, (4, 6), strict=True):
        (figures,) = [row for row in rows(logged) if "figures/learning_curve/path" in row]
        assert figures["frame"] == frame
        (artifact,) = of("artifact", logged)
        assert (artifact.type, json.loads(artifact.metadata)["frame"]) == ("checkpoint", frame)
        (content,) = artifact.manifest.contents
        assert content.local_path == str(output / "checkpoints" / f"frame=00000000{frame}.ckpt")
        summary = {(u.key or "/".join(u.nested_key)) for s in of("summary", logged) for u in s.update}
        assert {"final/utility", "final/hit_ratio"} <= summary


def test_the_api_key_is_in_no_file(sessions, output):
    files = [path for path in output.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if API_KEY.encode() in path.read_bytes()]


def logged_rows(output):
    """All sessions' rows of metrics, by frame."""
    found = [
        row
        for path in sorted(output.glob("wandb/offline-run-*/*.wandb"))
        for row in rows(records(path))
        if "slots" in row
    ]
    assert len(found) == len({row["frame"] for row in found}), "a frame is there twice"
    return {row["frame"]: {k: v for k, v in row.items() if not k.startswith("_")} for row in found}


def test_killed_and_resumed_it_holds_the_rows_of_the_csv_files(tmp_path):
    """Of what was handed over at frame 4 some may be lost; frames 5 and 6 are played again."""
    output = tmp_path / "run"
    arguments = [*RUN, "logger=wandb", "logger.offline=true", "frames=12", "checkpoint.every_n_frames=4",
                 "cacher=random", "allocator=equal", f"output_dir={output}", "resume=auto"]  # fmt: skip
    own_service = {"WANDB_SERVICE": ""}  # not the one of this process, which would think the killed run alive
    process = start(arguments, tmp_path / "log", **own_service)
    while process.is_alive() and "\n6," not in read(output / "metrics.csv"):
        time.sleep(0.001)
    process.kill()
    process.join()
    finish(start(arguments, tmp_path / "log", **own_service), tmp_path / "log")
    wanted = FrameCSVLogger(output, 12, "").rows()
    assert sorted(wanted) == list(range(13))
    assert logged_rows(output) == wanted


def read(path):
    return path.read_text() if path.exists() else ""


def test_online_it_sends_what_the_server_has_not(tmp_path, monkeypatch):
    sent = []

    class Run:
        resumed, id, name, dir, summary = True, "abc", "x", str(tmp_path / "wandb" / "run-1" / "files"), {"frame": 4}
        config = type("C", (), {"update": lambda *a, **k: None})()
        define_metric = finish = lambda *a, **k: None
        log = lambda self, row: sent.append(row["frame"])  # noqa: E731

    monkeypatch.setattr("wandb.init", lambda **_: Run())
    rows = {frame: {"frame": frame, "utility": 0.5} for frame in (2, 4, 6)}
    logger = FrameWandbLogger(TrainConfig(), {}, tmp_path, "abc", rows, print)
    assert sent == [6]
    logger.log_metrics({"utility": 0.6}, step=8)
    logger.log_metrics({"evaluation/utility": 0.7}, step=8)
    assert sent == [6]  # no checkpoint covers frame 8 yet
    logger.after_save_checkpoint(None)
    assert sent == [6, 8]


def test_without_an_account_one_line_says_what_to_do(tmp_path):
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": "", "WANDB_MODE": "online"}
    process = start([*RUN, "logger=wandb", f"output_dir={tmp_path / 'run'}"], tmp_path / "log", **nobody)
    process.join(seconds(60))
    assert process.exitcode == 1
    assert (tmp_path / "log").read_text().splitlines() == [
        "error: logger: W&B knows no account here; run `wandb login`, or logger.offline=true needs neither account nor "
        "network"
    ]
    assert not (tmp_path / "run").exists()


def ends(parameter):
    return parameter.get("values") or [parameter["min"], parameter["max"]]


@pytest.mark.parametrize("end", [0, -1])
def test_the_sweep_definition_runs_train_py(end):
    """Expanded as W&B's agent does, at both ends of every parameter."""
    sweep = yaml.safe_load((CONFIG_ROOT / "wandb_sweep.yaml").read_text())
    chosen = {name: ends(parameter)[end] for name, parameter in sweep["parameters"].items()}
    arguments = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    command = create_sweep_command(sweep["command"])
    assert command[:3] == ["${env}", "${interpreter}", "${program}"]
    assert (CONFIG_ROOT.parent / sweep["program"]).is_file()
    overrides = [part for piece in command[3:] for part in (arguments[piece[2:-1]] if piece[0] == "$" else [piece])]
    config = compose("train", overrides).config
    build_policies(config.env, config.cacher, config.allocator)
    assert config.logger.wandb and config.logger.job_type == "sweep"
    assert config.allocator["diffusion"]["steps"] == chosen["allocator.diffusion.steps"]
    assert config.seed == chosen["seed"]
    assert sweep["metric"]["name"].startswith("evaluation/") and config.evaluation.every_n_frames
