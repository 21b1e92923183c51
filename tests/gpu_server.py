"""A server in vLLM's place on GPUs that are not there: ``gpu_server.py BEHAVIOUR [vLLM's arguments]``.

It prints the log of a real run (Llama-3.1-8B on one H100, vLLM 0.19, 0.95 of the memory: row h100-019-31 of
harness/catalog/evidence.csv) in words of our own fixture, or the log that ``LOADFIT_TEST_LOG`` names; moves the memory
of the NVML that the tests compile as that run did; and answers /collective_rpc with the attributes that its worker
had. BEHAVIOUR is one of misbehaving_server.py's, or of those that are handled here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from misbehaving_server import STEPS_HEADER, Misbehaving, be_engine_core, be_worker

GIB, MIB = 2**30, 2**20
BASELINE = 4 * MIB
# GiB, as the run's log has them
RUN = {
    "cuda_total": 79.19, "free_at_init": 78.68, "requested": 75.23, "model": 14.99, "activation_peak": 1.89,
    "non_torch": 0.25, "graphs_estimated": 0.84, "graphs": 0.91, "available": 58.11,
}  # fmt: skip
BLOCKS, BLOCK_BYTES = 29_751, 16 * 131_072
# GiB: in use when idle and at the peak, come late beside PyTorch, tensors beside weights and KV
IDLE, LOADED, LATE, HELD = 76.75, 77.06, 0.06, 0.03
CACHED, MORE_CACHED = 1.95, 0.25  # GiB that PyTorch keeps, and more of it under load
PRIVATE = 0.7  # GiB of the graphs that PyTorch holds


def log_lines(world: int) -> list[tuple[str, float]]:
    """(line, GiB in use on each GPU once it is printed)."""
    r, lines = RUN, []
    init = r["cuda_total"] - r["free_at_init"]
    for rank in range(world):
        who = f"(Worker_TP{rank} pid={100 + rank})" if world > 1 else "(EngineCore pid=100)"

        def say(text: str, used: float, level: str = "INFO", who: str = who) -> None:
            lines.append((f"{who} {level} 04-22 00:00:00 [gpu.py:1] {text}", used))

        say(f"worker init memory snapshot: torch_peak=0.0GiB, free_memory={r['free_at_init']}GiB, "
            f"total_memory={r['cuda_total']}GiB, cuda_memory={init:.2f}GiB, torch_memory=0.0GiB, "
            f"non_torch_memory={init:.2f}GiB, timestamp=1.0, auto_measure=True", init, "DEBUG")  # fmt: skip
        say(f"worker requested memory: {r['requested']}GiB", init, "DEBUG")
        say("Starting to load model meta-llama/Llama-3.1-8B-Instruct...", init)
        say(f"Model loading took {r['model']} GiB memory and 14.4 seconds", init + r["model"])
        profiled = init + r["model"] + r["non_torch"]
        say(f"Estimated CUDA graph memory: {r['graphs_estimated']} GiB total", profiled + r["activation_peak"])
        say(f"Memory profiling takes 17.96 seconds. Total non KV cache memory: 17.12GiB; torch peak memory increase: "
            f"{r['activation_peak']}GiB; non-torch forward increase memory: {r['non_torch']}GiB; weights memory: "
            f"{r['model']}GiB.", profiled, "DEBUG")  # fmt: skip
        say(f"Available KV cache memory: {r['available']} GiB", profiled)
        say("GPU KV cache size: 476,016 tokens", profiled + r["available"])
        say("Maximum concurrency for 8,192 tokens per request: 58.11x", profiled + r["available"])
        say(f"Graph capturing finished in 3 secs, took {r['graphs']} GiB", profiled + r["available"] + r["graphs"])
    return lines


class GpuServer(Misbehaving):
    """As its parent, with GPUs."""

    def __init__(self, behaviour: str, arguments: list[str]) -> None:
        super().__init__(behaviour, arguments)
        self.state = Path(os.environ["FAKE_NVML"])
        self.quiet = self.state.read_text()
        self.extra: list[str] = []
        self.resets = 0

    @property
    def uuids(self) -> list[str]:
        """The GPUs that it sees, the last first where the engine is to number them otherwise than NVML does."""
        all_of_them = [line.split()[1] for line in self.quiet.splitlines() if line.startswith("device")]
        seen = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        found = [all_of_them[int(n)] for n in seen if n.isdecimal()] or all_of_them
        return found[::-1] if self.behaviour == "other_order" else found

    def use(self, gib: float) -> None:
        """Have so much in use on every GPU above the baseline."""
        lines = []
        for line in self.quiet.splitlines():
            words = line.split(maxsplit=6)
            if words and words[0] == "device":
                words[4] = str(int(words[4]) + round(gib * GIB))
            if words and words[0] == "mig":
                words[5] = str(int(words[5]) + round(gib * GIB))
            lines.append(" ".join(words))
        if self.behaviour == "accounted":
            lines += [f"accounting {uuid} {self.worker} {75 * GIB}" for uuid in self.uuids]
        pid = self.worker + (10_000_000 if self.behaviour.startswith("host_pids") else 0)
        pids = [pid, pid + 1] if self.behaviour.endswith("and_a_stranger") else [pid]
        workers = [f"process {uuid} {p} {round(gib * GIB)}" for uuid in self.uuids for p in pids] if gib else []
        beside = self.state.with_suffix(".server")
        beside.write_text("\n".join([*lines, *workers, *self.extra]) + "\n")
        beside.replace(self.state)

    def start(self) -> None:
        given = os.environ.get("LOADFIT_TEST_LOG")
        self.start_processes()
        if given:
            sys.stdout.write(Path(given).read_text(errors="replace"))
            sys.stdout.flush()
        else:
            for line, used in log_lines(len(self.uuids)):
                self.use(used)
                print(line, flush=True)
                time.sleep(0.6 if "Model loading" in line else 0.01)  # the log is read every 0.1 s
        if (self.state.parent / "seen").is_dir():
            (self.state.parent / "seen" / "environment").write_text(json.dumps(dict(os.environ)))
        self.use(IDLE)
        self.steps.write_text(STEPS_HEADER + "\n")

    async def rpc(self, request):  # type: ignore[no-untyped-def]
        method = (await request.json())["method"]
        if self.behaviour == "no_probe":
            raise self.web.HTTPNotFound
        if self.behaviour == "odd_probe":
            return await super().rpc(request)
        if method == "loadfit_reset_peaks":
            self.resets += 1
            return self.web.json_response({"results": [None for _ in self.uuids]})
        return self.web.json_response({"results": [self.told(rank) for rank in range(len(self.uuids))]})

    def told(self, rank: int) -> dict[str, object]:
        b = {name: round(gib * GIB) for name, gib in RUN.items()}
        loaded = self.asked > 0
        kv = BLOCKS * BLOCK_BYTES
        allocated = b["model"] + kv + round(HELD * GIB)
        private = round(PRIVATE * GIB)
        reserved = allocated + private + round((CACHED + (MORE_CACHED if loaded else 0)) * GIB)
        in_use = round((LOADED if loaded else IDLE) * GIB) + BASELINE
        return {
            "pid": 1, "rank": rank, "weights_bytes": None, "graphs_bytes": b["graphs"], "kv_bytes": kv,
            "num_blocks": BLOCKS, "block_size": 16, "cuda_total_bytes": b["cuda_total"],
            "free_at_init_bytes": b["free_at_init"], "torch_at_init_bytes": 0, "model_bytes": b["model"],
            "graphs_applied": 0, "requested_bytes": b["requested"], "non_torch_bytes": b["non_torch"],
            "activation_peak_bytes": b["activation_peak"], "graphs_estimated_bytes": b["graphs_estimated"],
            "available_bytes": b["available"] + rank * MIB, "uuid": self.uuids[rank].removeprefix("GPU-"),
            "name": "NVIDIA H100 80GB HBM3", "cuda_free_bytes": b["cuda_total"] - in_use,
            "torch_allocated_current_bytes": allocated, "torch_reserved_current_bytes": reserved,
            "torch_allocated_peak_bytes": allocated + round(1.2 * GIB) if self.resets else allocated * 9,
            "torch_reserved_peak_bytes": reserved, "graph_pool_reserved_bytes": private,
            "graph_pool_allocated_bytes": 0,
        }  # fmt: skip

    async def answer(self, request, body, number):  # type: ignore[no-untyped-def]
        kind = self.behaviour
        if number == 2:
            if kind == "lost":
                self.extra = [f"lost {self.uuids[0]}"]
            if kind == "stranger":
                self.extra = [f"process {self.uuids[0]} 424242 {3 * GIB}"]
            if kind == "xid":
                self.extra = [f"xid {self.uuids[0]} 79"]
            self.use(LOADED)
        return await super().answer(request, body, number)


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "VLLM::EngineCore":
        be_engine_core()
    elif kind == "VLLM::Worker":
        be_worker()
    server = GpuServer(kind, arguments)
    server.start()
    server.serve()


if __name__ == "__main__":
    main()
