"""A server in vLLM's place that goes wrong on purpose: ``misbehaving_server.py BEHAVIOUR [vLLM's arguments]``.

``in_turn:A,B`` is A when it is first started, then B, and B from then on.

It speaks as much of vLLM's HTTP as a run asks for, prints its log in vLLM's manner, and has vLLM's three
processes: an engine core and a worker below the API server. Those two leave the session and are deaf to TERM,
so that only a thorough guard gets rid of them.

``LOADFIT_TEST_FOLDER`` names a folder where it leaves what a test wants to see: the key it was given, and
where it finds ``fill``, the path of a file that it makes as large as the disk allows.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from pathlib import Path

ESCAPES = "\x1b[2J\x1b[31m\x1b]0;owned\x07<script>alert(1)</script> | `x` ``` [bold red]loud[/nothing]"
OTHERS = "a-key-that-no-environment-holds"
STEPS_HEADER = "time_ns,blocks_used,running,waiting,preempted,tokens,blocked_on_kv"


def say(text: str, level: str = "INFO", process: str = "APIServer") -> None:
    print(f"({process} pid={os.getpid()}) {level} {time.strftime('%m-%d %H:%M:%S')} [fake.py:1] {text}", flush=True)


def forever() -> None:
    while True:
        time.sleep(3600)


def below(title: str, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, title, *more], stdout=subprocess.PIPE)


def be_engine_core() -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = below("VLLM::Worker")
    assert worker.stdout is not None
    worker.stdout.readline()
    print(worker.pid, flush=True)
    forever()


def be_worker() -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up", flush=True)
    forever()


class Misbehaving:
    def __init__(self, behaviour: str, arguments: list[str]) -> None:
        self.behaviour, self.arguments = behaviour, arguments
        self.port = int(arguments[arguments.index("--port") + 1])
        self.worker = 0
        self.dead = False
        self.asked = self.preempted = 0
        self.running = 0
        self.resumed: asyncio.Event | None = None
        folder = os.environ.get("LOADFIT_TEST_FOLDER")
        self.folder = Path(folder) if folder else None
        self.steps = Path(os.environ["LOADFIT_STEPS"])

    def start(self) -> None:
        """What happens before the server listens."""
        kind = self.behaviour
        if self.folder:
            (self.folder / "key").write_text(os.environ["VLLM_API_KEY"])
            told = {k: v for k, v in os.environ.items() if "VLLM" in k or k.endswith("SOCKET_IFNAME")}
            (self.folder / "environment").write_text(json.dumps(told))
        if kind == "refuses_usage":
            sys.exit("api_server.py: error: unrecognized arguments: --made-up 1")
        if kind == "silent_exit":
            sys.exit(7)
        if kind == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.start_processes()
        if kind == "tells_secrets":
            self.tell_secrets()
        say("Starting to load model /made/up...", process="Worker")
        if kind == "killed_loading":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "noisy":
            junk = bytes(range(256)).replace(b"\n", b"") * 4096
            for _ in range(30):
                sys.stdout.buffer.write(junk)
            sys.stdout.buffer.write(b"a" * (1 << 20) + b"\n")
            sys.stdout.flush()
        say("Model loading took 0.01 GiB memory and 0.1 seconds", process="Worker")
        if kind == "refuses":
            print("Traceback (most recent call last):\n  File \"made_up.py\", line 1, in start", flush=True)
            say("ValueError: To serve at least one request, more KV cache is needed.", "ERROR", "EngineCore")
            say("RuntimeError: Engine core initialization failed. See above.", "ERROR")
            sys.exit(1)
        tokens = "4,096" if kind != "odd_log" else "9,,9"
        words = ESCAPES if kind == "hostile" else ""
        say(f"CPU KV cache size: {tokens} tokens, Maximum concurrency for 512 tokens per request: 8.00x{words}")
        if kind in ("no_scheduler_probe", "no_worker_probe"):
            self.load_probes()
        if kind == "hangs":
            forever()
        if kind != "no_steps":
            self.steps.write_text(STEPS_HEADER + "\n")

    def load_probes(self) -> None:
        """As vLLM does: what the arguments name is imported, and the engine ends where that fails."""
        if self.behaviour == "no_scheduler_probe":
            sys.modules["vllm"] = types.ModuleType("vllm")  # one without the scheduler that ours is made of
        else:
            sys.modules["harness.engines.worker_probe"] = None  # type: ignore[assignment]
        for flag, process in (("--worker-extension-cls", "Worker"), ("--scheduler-cls", "EngineCore")):
            if flag not in self.arguments or (flag == "--scheduler-cls" and self.behaviour == "no_worker_probe"):
                continue
            module, _, name = self.arguments[self.arguments.index(flag) + 1].rpartition(".")
            try:
                getattr(importlib.import_module(module), name)
            except Exception:
                for line in traceback.format_exc().splitlines():
                    say(line, "ERROR", process)
                say("RuntimeError: Engine core initialization failed. See root cause above.", "ERROR")
                sys.exit(1)

    def tell_secrets(self) -> None:
        """In pieces, whole, and in the forms in which servers tell them."""
        for secret in (os.environ["VLLM_API_KEY"], os.environ["HF_TOKEN"]):
            sys.stdout.write(f"said in pieces: {secret[:7]}")
            sys.stdout.flush()
            time.sleep(0.2)
            print(f"{secret[7:]}, and Authorization: Bearer {secret}", flush=True)
        say(f"non-default args: {{'api_key': ['{OTHERS}']}}; https://me:{OTHERS}@hub/x; --api-key {OTHERS} --port 1")

    def start_processes(self) -> None:
        say("Initializing a V1 LLM engine (v0.32.0) with config: made up", process="EngineCore")
        core = below("VLLM::EngineCore")
        assert core.stdout is not None
        self.worker = int(core.stdout.readline())

    def step(self) -> None:
        if self.behaviour != "no_steps":
            with self.steps.open("a") as out:
                out.write(f"{time.monotonic_ns()},{self.running},{self.running},0,0,8,0\n")
                if self.behaviour == "half_steps":
                    out.write("12345,99999")  # the engine died in the middle of a line
                    self.behaviour = "no_steps"

    # -- HTTP --------------------------------------------------------------------------------------

    async def health(self, request):  # type: ignore[no-untyped-def]
        return self.web.Response(status=503 if self.dead or self.behaviour in ("never_healthy", "deaf") else 200)

    async def models(self, request):  # type: ignore[no-untyped-def]
        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            raise self.web.HTTPUnauthorized
        return self.web.json_response({"object": "list", "data": [{"id": "loadfit", "max_model_len": 512}]})

    async def metrics(self, request):  # type: ignore[no-untyped-def]
        if self.behaviour == "no_metrics":
            raise self.web.HTTPNotFound
        if self.behaviour == "hanging_metrics":
            await asyncio.sleep(3600)
        if self.behaviour == "floods":
            return await self.flood(request)
        if self.behaviour == "bad_metrics":
            return self.web.Response(
                body=b'vllm:num_requests_running{engine="0" 1\nvllm:num_requests_waiting{} NaN\n\xff\xfe{{{'
            )
        label = '{engine="0",model_name="loadfit"}'
        return self.web.Response(
            text="vllm:cache_config_info{block_size=\"32\",engine=\"0\",num_gpu_blocks=\"129\"} 1.0\n"
            f"vllm:kv_cache_usage_perc{label} 0.5\nvllm:num_requests_running{label} {self.running}.0\n"
            f"vllm:num_requests_waiting{label} 0.0\nvllm:num_preemptions_total{label} {self.preempted}.0\n"
            f"vllm:generation_tokens_total{label} {8 * self.asked}.0\n"
        )

    async def pause(self, request):  # type: ignore[no-untyped-def]
        if self.behaviour == "no_pause" or os.environ["VLLM_SERVER_DEV_MODE"] != "1":
            raise self.web.HTTPNotFound
        self.resumed = asyncio.Event()
        return self.web.json_response({"status": "paused"})

    async def resume(self, request):  # type: ignore[no-untyped-def]
        if self.resumed:
            self.resumed.set()
        return self.web.json_response({"status": "resumed"})

    async def rpc(self, request):  # type: ignore[no-untyped-def]
        if os.environ["VLLM_SERVER_DEV_MODE"] != "1":
            raise self.web.HTTPNotFound
        if self.behaviour == "odd_probe":
            return self.web.json_response({"results": {"0": "many"}})
        if self.behaviour == "odd_log":
            return self.web.json_response({"results": [{"weights_bytes": "many", "kv_bytes": [1]}]})
        return self.web.json_response({"results": [{"pid": 1, "weights_bytes": 1 << 20, "kv_bytes": 2 << 20}]})

    async def tokenize(self, request):  # type: ignore[no-untyped-def]
        if self.behaviour == "no_tokenizer":
            return self.web.json_response({"error": {"message": "no tokenizer", "code": 400}}, status=400)
        text = (await request.json())["prompt"]
        return self.web.json_response({"tokens": [ord(c) % 1000 for c in text], "count": len(text)})

    async def complete(self, request):  # type: ignore[no-untyped-def]
        if request.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            raise self.web.HTTPUnauthorized
        body = await request.json()
        if self.resumed:
            await self.resumed.wait()
        self.asked += 1
        self.running += 1
        try:
            return await self.answer(request, body, self.asked)
        finally:
            self.running -= 1

    async def answer(self, request, body, number):  # type: ignore[no-untyped-def]
        kind = self.behaviour
        if kind == "all_500" or (kind == "some_500" and number == 3):
            return self.web.json_response({"error": {"message": "made to fail", "code": 500}}, status=500)
        if kind == "tells_secrets":
            said = f"{os.environ['VLLM_API_KEY']} {os.environ['HF_TOKEN']} password={OTHERS}"
            return self.web.Response(text=said, status=500)
        if kind == "redirects":
            raise self.web.HTTPTemporaryRedirect(f"http://127.0.0.1:{self.port}/elsewhere")
        if kind == "floods":
            return await self.flood(request)
        if kind == "hostile":
            return self.web.Response(text=ESCAPES, status=500)
        if kind == "fills_disk" and number == 3:
            self.fill()
        if kind == "killed" and number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "out_of_memory" and number == 3:
            say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "ERROR", "Worker")
            os._exit(1)
        if kind == "crashes" and number == 3:
            say("KeyError: 'made_up'", "ERROR", "EngineCore")
            os._exit(1)
        if kind == "worker_killed" and number >= 3:
            if not self.dead:
                self.dead = True
                os.kill(self.worker, signal.SIGKILL)
                say("Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.", "ERROR")
                say("EngineDeadError: EngineCore encountered an issue.", "ERROR")
                asyncio.get_running_loop().call_later(1.5, os._exit, 1)  # vLLM's watchdog needs a moment as well
            return self.web.json_response({"error": {"message": "EngineCore is dead", "code": 500}}, status=500)
        stream = self.web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await stream.prepare(request)
        if kind == "garbage":
            await stream.write(b"data: {\"usage\":{\xff\xfe\x00\n\ndata: [DONE]\n\n")
            return stream
        if kind == "endless" and number >= 3:
            while True:
                await self.event(stream, [{"index": 0, "text": ".", "finish_reason": None}], None)
                await asyncio.sleep(0.05)
        wanted = body["max_tokens"]
        for i in range(wanted):
            await self.event(stream, [{"index": 0, "text": f" {i}", "finish_reason": None}], None)
            await asyncio.sleep(0.02)
            if i == 2 and kind == "drops" and number % 2:
                request.transport.abort()
                return stream
            if i == 2 and kind == "short":
                wanted = 3
                break
        self.step()
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": wanted}
        await self.event(stream, [], {**usage, "total_tokens": sum(usage.values())})
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def flood(self, request):  # type: ignore[no-untyped-def]
        """Never ends."""
        stream = self.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        event = b'data: {"choices":[{"text":"' + b"x" * (1 << 16) + b'"}]}\n\n'
        while True:
            await stream.write(event)

    async def elsewhere(self, request):  # type: ignore[no-untyped-def]
        (self.folder / "followed").touch()
        return self.web.Response(text="ok")

    async def event(self, stream, choices, usage):  # type: ignore[no-untyped-def]
        data = {"id": "cmpl-0", "object": "text_completion", "created": 1, "model": "loadfit",
                "choices": choices, "usage": usage}  # fmt: skip
        await stream.write(b"data: " + json.dumps(data, separators=(",", ":")).encode() + b"\n\n")

    def fill(self) -> None:
        assert self.folder
        with Path((self.folder / "fill").read_text()).open("wb", buffering=0) as out:
            for size in (4096, 1):
                try:
                    while out.write(b"\0" * size):
                        pass
                except OSError:
                    pass

    def serve(self) -> None:
        from aiohttp import web

        self.web = web
        app = web.Application()
        app.add_routes([
            web.get("/health", self.health), web.get("/metrics", self.metrics), web.post("/pause", self.pause),
            web.get("/v1/models", self.models), web.route("*", "/elsewhere", self.elsewhere),
            web.post("/resume", self.resume), web.post("/collective_rpc", self.rpc),
            web.post("/tokenize", self.tokenize), web.post("/v1/completions", self.complete),
        ])  # fmt: skip
        say("Starting vLLM server on http://127.0.0.1")
        web.run_app(
            app, host="127.0.0.1", port=self.port, print=None, access_log=None, shutdown_timeout=0.1,
            handle_signals=self.behaviour != "deaf",
        )  # fmt: skip


def in_turn(kinds: list[str]) -> str:
    """The behaviour of this start."""
    starts = Path(os.environ["LOADFIT_TEST_FOLDER"]) / "starts"
    before = int(starts.read_text()) if starts.exists() else 0
    starts.write_text(str(before + 1))
    return kinds[min(before, len(kinds) - 1)]


def main() -> None:
    kind, *arguments = sys.argv[1:]
    if kind == "VLLM::EngineCore":
        be_engine_core()
    elif kind == "VLLM::Worker":
        be_worker()
    if kind.startswith("in_turn:"):
        kind = in_turn(kind.removeprefix("in_turn:").split(","))
    server = Misbehaving(kind, arguments)
    server.start()
    server.serve()


if __name__ == "__main__":
    main()
