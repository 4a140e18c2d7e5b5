"""The HTTP service under load on the loopback address, beside the bare Controller.

    python -m benchmarks.service policy [--output runs/service | --publish]

`policy` is a directory that `t2drl export` has written. One process serves, this one asks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.report import Section
from lightning_t2drl.deploy import Controller

MB = 8e6  # bit
WARM_UP = 50  # decisions


def situation(controller: Controller, users: int, rng: np.random.Generator) -> dict:
    """A slot of so many users with whatever fits into the cache, in index order."""
    scenario = controller.policy["scenario"]
    fits = np.cumsum(scenario["model_storage"]) <= scenario["storage_capacity"]
    ranges = {"input_mb": (5, 10), "output_mb": (5, 10), "snr_db": (5, 20)}
    numbers = {key: rng.uniform(*between, users).tolist() for key, between in ranges.items()}
    request = rng.integers(controller.models, size=users).tolist()
    return {"request": request, "cache": np.flatnonzero(fits).tolist(), "seed": 0} | numbers


def bare(controller: Controller, slot: dict, requests: int) -> list[float]:
    """Seconds of each decision in this process."""
    cache = np.isin(np.arange(controller.models), slot["cache"])
    seconds = []
    for _ in range(requests):
        start = time.perf_counter()
        bits = (np.array(slot[key]) * MB for key in ("input_mb", "output_mb"))
        controller.allocate(slot["request"], *bits, cache, snr_db=slot["snr_db"], seed=0)
        seconds.append(time.perf_counter() - start)
    return seconds


def client(port: int, body: str, requests: int) -> list[float]:
    """Seconds of each request over one connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    seconds = []
    for _ in range(requests):
        start = time.perf_counter()
        connection.request("POST", "/allocate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        seconds.append(time.perf_counter() - start)
    connection.close()
    return seconds


def row(who: str, seconds: list[float], wall: float) -> dict[str, Any]:
    """A row of the table."""
    median, last = np.percentile(np.array(seconds) * 1e3, (50, 99)).tolist()
    return {"who": who, "decisions per second": len(seconds) / wall, "median, ms": median, "99th percentile, ms": last}


def measure(policy: Path, users: int, requests: int) -> Section:
    """Decisions in this process, then over HTTP by one and by four clients at once."""
    controller = Controller(policy)
    slot = situation(controller, users, np.random.default_rng(0))
    bare(controller, slot, WARM_UP)
    start = time.perf_counter()
    seconds = bare(controller, slot, requests)
    rows = [row("Controller in the process", seconds, time.perf_counter() - start)]
    command = [sys.executable, "-m", "lightning_t2drl", "serve", f"policy={policy}", "port=0"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        port = int(service.stdout.readline().partition("http://127.0.0.1:")[2].partition(":")[0])
        body = json.dumps(slot)
        client(port, body, WARM_UP)
        for clients in (1, 4):
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                each = [requests // clients] * clients
                parts = list(pool.map(client, [port] * clients, [body] * clients, each))
            everything = [second for part in parts for second in part]
            who = f"HTTP, {clients} client{'s' * (clients > 1)}"
            rows.append(row(who, everything, time.perf_counter() - start))
    finally:
        service.terminate()
        service.wait(10)
    name = controller.policy["name"]
    return Section("Decisions", f"{name}, {users} users a slot, {requests} decisions of each kind", rows)


def main(arguments: list[str]) -> str:
    """Measure, write and return the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("policy", type=Path)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind; default %(default)s")
    parser.add_argument("--users", type=int, default=10, help="of a slot; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("runs/service"), help="directory; default %(default)s")
    parser.add_argument("--publish", dest="output", action="store_const", const=Path("results/service"))
    parsed = parser.parse_args(arguments)
    origin = report.provenance(shlex.join(["python", "-m", "benchmarks.service", *arguments]))
    section = measure(parsed.policy, parsed.users, parsed.requests)
    how = "wall seconds of each decision as who asks sees it; the service has a process of its own"
    return report.write(parsed.output, origin, {"decisions": section}, "The HTTP service under load", how)


if __name__ == "__main__":
    print(main(sys.argv[1:]))
