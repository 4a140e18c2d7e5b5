"""The HTTP service: answers as the Controller decides, one line and 422 for whatever a request says wrong."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lightning_t2drl.deploy.controller import Cell
from lightning_t2drl.deploy.serve import MOST_BYTES, make_app

MODELS, USERS = 4, 3
SLOT = {"request": [0, 1, 2], "input_mb": [6, 7, 8.5], "output_mb": [5, 5, 5], "snr_db": [10, 12, 9], "cache": [0, 2]}


class Halves(Cell):
    """A cell whose users share all evenly, and that holds what was asked for most."""

    def __init__(self):
        scenario = {"name": "toy", "models": MODELS, "cells": 1, "step_budget": 100.0, "noise_density": 1e-20}
        scenario |= {"bandwidth": 1e7, "user_power": 0.1, "edge_link_rate": None, "storage_capacity": 8e9 * 6}
        scenario |= {"model_storage": [2 * 8e9] * MODELS}
        super().__init__({"name": "halves", "users": None, "popularity": "frequencies", "scenario": scenario})

    def cache(self, popularity, held=None, users=None, nearby=None):
        seen = self._popularity(popularity)
        return seen >= np.sort(seen)[-2]

    def allocate_checked(self, feeds, samples=None, seed=None):
        n = len(feeds["request"])
        return np.full(n, 1 / n), self.budget_steps[feeds["request"]] / n


@pytest.fixture(scope="module")
def client():
    from starlette.testclient import TestClient

    return TestClient(make_app(Halves()), raise_server_exceptions=False)


def test_it_answers(client):
    assert client.get("/health").json()["policy"] == "halves"
    assert client.post("/cache", json={"popularity": [5, 1, 4, 1]}).json() == {"cache": [0, 2]}
    answer = client.post("/allocate", json=SLOT | {"seed": 1})
    assert answer.status_code == 200 and answer.json()["bandwidth"] == pytest.approx([1 / 3] * 3)


def changed(**keys):
    return json.dumps({k: v for k, v in (SLOT | keys).items() if v != "gone"}).encode()


WRONG = [
    *(b"", b"{", b"[]", b"null", b"3", b'"a"', b"\xff\xfe", b"{}", b"[" * 100_000, b'{"request": NaN}', b"{'a': 1}"),
    *(changed(**{key: "gone"}) for key in SLOT),
    *(changed(**{key: None}) for key in ("request", "input_mb", "output_mb", "cache", "snr_db")),
    *(changed(**{key: wrong}) for key in ("request", "cache") for wrong in ([-1], [MODELS], [0.5], ["0"], 3, {}, [[0]])),
    *(changed(**{key: [6.0, 6.0]}) for key in ("input_mb", "output_mb", "snr_db")),
    *(changed(**{key: [1, 2, wrong]}) for key in ("input_mb", "snr_db") for wrong in ("x", None, [], 1e30)),
    *(changed(samples=wrong) for wrong in (0, -1, 1.5, "1", 10**9, True)),
    *(changed(seed=wrong) for wrong in (-1, 2**64, "0")),
    *(changed(gain=[1e-9] * 3), changed(gain=[2, 2, 2], snr_db="gone"), changed(cache=[0, 1, 2, 3]), changed(typo=1)),
    *(changed(handover=[0]), changed(nearby=[1]), changed(uplink_interference=1.0), changed(request=[0] * 20_000)),
    *(b'{"request": [1e999]}', b'{"\\ud800": 1}', b'{"seed": ' + b"9" * 5000 + b"}", b"0" * (MOST_BYTES + 1)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_what_is_wrong_gets_422_and_one_line(client, number):
    answer = client.post("/allocate", content=WRONG[number], headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    line = answer.json()["error"]
    assert list(answer.json()) == ["error"] and line and "\n" not in line


def test_there_are_fifty_kinds_of_wrong_requests_and_other_places_say_so():
    assert len({bytes(content[:200]) + str(len(content)).encode() for content in WRONG}) >= 50


def test_other_paths_methods_and_kinds_of_content(client):
    assert client.post("/cache", json={"popularity": [1, 2]}).status_code == 422
    assert client.post("/cache", json={"popularity": "1"}).status_code == 422
    assert client.post("/explain", json={}).status_code == 422
    for popularity in (7, [1, 2], [-1] * 4):  # beside a cache, too
        assert client.post("/explain", json=SLOT | {"popularity": popularity}).status_code == 422
    chunks = client.post("/cache", content=iter([b"{}"]))  # of any length
    assert chunks.status_code == 422 and "Content-Length" in chunks.json()["error"]
    assert client.post("/allocate", content=changed(), headers={"content-type": "text/plain"}).status_code == 422
    assert (client.get("/allocate").status_code, client.get("/nothing").status_code) == (405, 404)
    assert "error" in client.get("/nothing").json()


def test_the_service_needs_no_pytorch():
    code = "import sys; sys.modules['torch'] = None; import lightning_t2drl.deploy.serve as s, lightning_t2drl.run.cli as c\n"
    code += "c.main(['serve', 'policy=nowhere'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: nowhere: no exported policy"), done.stderr
