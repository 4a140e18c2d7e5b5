"""The HTTP service under load on the loopback address, beside the bare Controller.

python -m benchmarks.http policy      # a directory that t2drl export has written
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from lightning_t2drl.deploy import Controller

MB = 8e6  # bit


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


def row(name: str, seconds: list[float], wall: float) -> None:
    median, last = np.percentile(np.array(seconds) * 1e3, (50, 99))
    print(f"{name:<28}{len(seconds) / wall:>10.0f}{median:>12.2f}{last:>12.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", type=Path)
    parser.add_argument("--requests", type=int, default=2000, help="of each kind")
    parser.add_argument("--users", type=int, default=10)
    given = parser.parse_args()
    controller = Controller(given.policy)
    slot = situation(controller, given.users, np.random.default_rng(0))
    print(f"{'':<28}{'per second':>10}{'median ms':>12}{'99th % ms':>12}")
    bare(controller, slot, 50)
    start = time.perf_counter()
    seconds = bare(controller, slot, given.requests)
    row("Controller in the process", seconds, time.perf_counter() - start)
    command = [sys.executable, "-m", "lightning_t2drl", "serve", f"policy={given.policy}", "port=0"]
    service = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert service.stdout is not None
        port = int(service.stdout.readline().partition("http://127.0.0.1:")[2].partition(":")[0])
        body = json.dumps(slot)
        client(port, body, 50)
        for clients in (1, 4):
            start = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                parts = list(
                    pool.map(client, [port] * clients, [body] * clients, [given.requests // clients] * clients)
                )
            row(
                f"HTTP, {clients} client{'s' * (clients > 1)}",
                [second for part in parts for second in part],
                time.perf_counter() - start,
            )
    finally:
        service.terminate()
        service.wait(10)


if __name__ == "__main__":
    main()
