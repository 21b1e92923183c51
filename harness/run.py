"""One run: start the engine, mark the phases, sample, drive the load, stop; everything into a folder.

No memory arithmetic happens here. What is written can be read, measured and reported from the folder alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import prompts, store
from harness.analytic import begin
from harness.devices import procfs
from harness.engines import log, vllm
from harness.engines.attached import Attached
from harness.errors import EngineError, RecordError
from harness.gpu_watch import BASELINE_S, GpuWatch
from harness.interrupts import Interrupts
from harness.ledger import Account, Phase
from harness.sampler import (
    DEVICE_INTERVAL_S,
    HOST_INTERVAL_S,
    MEMORY_INTERVAL_S,
    MemorySampler,
    read_cache_config,
    sample_metrics,
)
from harness.scenario import Scenario
from harness.sessions import Session
from harness.simulate.latency import Distribution

if TYPE_CHECKING:
    from harness.client import Answer, Client

START_TIMEOUT_S = 600.0
GONE_TIMEOUT_S = 15.0  # vLLM's server looks after its engine every 5 s
SETTLE_S = 1.0  # of quiet before and after the load

# How a run can end. What is not "completed" is read from the folder like any other.
COMPLETED, REFUSED, HUNG, DIED, TIMED_OUT, SILENT, FAILED, INTERRUPTED, UNRECORDED, LOST, DISTURBED = (
    "completed", "refused_at_start", "hung_at_start", "died_under_load", "load_timed_out", "no_answers",
    "requests_failed", "interrupted", "not_recorded", "device_lost", "disturbed",
)  # fmt: skip


class _EndedError(Exception):
    """The run can't go on for a reason that is not the engine's: (outcome, reason)."""


@dataclass
class Progress:
    """Where a run has come to; ``on_change`` is called whenever it changes."""

    on_change: Callable[[Progress], None] = lambda _: None
    stage: str = "starting"
    done: int = 0
    total: int = 0
    live: dict[str, float] = field(default_factory=dict)

    def at(self, stage: str) -> None:
        """Enter ``stage``."""
        self.stage = stage
        self.on_change(self)


def execute(
    scenario: Scenario,
    prediction: Account,
    session: Session,
    out: Path,
    *,
    why: str = "",
    port: int | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
    interval_s: float = DEVICE_INTERVAL_S,
    isolation: str = "warn",
    progress: Progress | None = None,
    series: store.Place | None = None,
) -> store.RunFolder:
    """Run ``scenario`` as ``session`` says; the folder, whatever became of the run, still to be finished.

    ``interval_s``: between two readings of the GPUs; ``isolation``: "fail" or "warn" where others are on them;
    ``series``: the run's place among repeats.

    The manifest's ``outcome`` and ``reason`` tell how it ended. Raises RecordError only where not even the folder
    could be begun, MachineError where the port is taken or the GPUs are.
    """
    port = vllm.free_port(port)
    attached = session.server is not None
    gpus = GpuWatch(session.gpus, isolation, attached=attached) if session.gpus else None
    with contextlib.ExitStack() as until_the_end:
        if gpus:
            until_the_end.callback(gpus.end)
        interrupts = until_the_end.enter_context(Interrupts())
        folder = begin(
            out, scenario, prediction, session.expected, session.mode, why, host=procfs.host(), series=series
        )
        run = _Run(scenario, session, folder, port, start_timeout_s, interval_s, gpus, progress or Progress())
        try:
            outcome, reason = interrupts.run(run.all()) or (INTERRUPTED, "")
        except _EndedError as ended:
            outcome, reason = ended.args
        except RecordError as error:  # the disk is full: say so, keep what there is
            outcome, reason = UNRECORDED, str(error)
        finally:
            stage = run.progress.stage
            run.end()
        if interrupts.heard and outcome != UNRECORDED:
            reason = f"{interrupts.heard} ({stage}; {run.progress.done} of {run.load.requests} requests had ended)"
            outcome = INTERRUPTED
        try:
            folder.save_manifest(outcome=outcome, reason=reason, **run.facts())
        except RecordError as error:
            outcome, reason = UNRECORDED, str(error)
    folder.manifest.update(outcome=outcome, reason=reason)
    return folder


class _Run:
    def __init__(
        self, scenario: Scenario, session: Session, folder: store.RunFolder, port: int, start_timeout_s: float,
        interval_s: float, gpus: GpuWatch | None, progress: Progress,
    ) -> None:  # fmt: skip
        assert scenario.load is not None
        self.load = scenario.load
        self.session, self.folder, self.progress = session, folder, progress
        self.start_timeout_s, self.interval_s, self.gpus = start_timeout_s, interval_s, gpus
        self.attached = session.server is not None
        self.server: vllm.Server | Attached = session.server or vllm.Server(
            session.plan, folder.file(store.ENGINE_LOG), folder.file(store.STEPS), port
        )
        self.marks: dict[str, int] = {}
        self.workers: dict[str, list[dict[str, Any]]] = {}
        self.cache_config: dict[str, int] = {}
        self.memory: MemorySampler | None = None
        self.tables: list[store.TableWriter] = []
        self.tail = vllm.LogTail(folder.file(store.ENGINE_LOG))
        self.answers = {"ok": 0}
        self.gaps: Distribution | None = None  # between the tokens of all answers

    # -- what is written down --------------------------------------------------------------------------

    def mark(self, phase: str) -> None:
        self.marks.setdefault(str(phase), time.monotonic_ns())
        if self.gpus and phase != Phase.START:
            self.gpus.look(phase, self._ours())
        self.folder.save_manifest(**self.facts())

    def _ours(self) -> set[int]:
        """The engine's processes."""
        return {p.pid for p in procfs.engine_processes(self.server.guard_pid)} if self.server.started else set()

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the engine and of the sampling."""
        return {
            "marks": self.marks,
            "engine": {
                "distribution": self.session.engine.distribution,
                "version": self.session.engine.version,
                "torch": None if self.attached else vllm.torch_version(),
                "arguments": self.session.plan.arguments,
                "trust_remote_code": self.session.plan.trust_remote_code,
                "exit_code": self.server.exit_code,
                **({"attached": self.server.url} if self.attached else {}),
            },
            "workers": self.workers,
            "cache_config": self.cache_config,
            "answers": self.answers,
            "paced": self.session.pace is not None,
            "itl_s": self.gaps and {name: value / 1e9 for name, value in self.gaps.told().items() if value is not None},
            "notes": list(self.session.notes),
            "sampling": self.memory and self.memory.facts(),
            **(self.gpus.facts() if self.gpus else {}),
        }

    def table(self, name: str, flush_s: float = 1.0) -> store.TableWriter:
        writer = self.folder.table(name, flush_s)
        self.tables.append(writer)
        return writer

    def end(self) -> None:
        """Stop the engine and the samplers; safe whatever went before."""
        self.progress.at("stopping the engine")
        with contextlib.suppress(RecordError):
            self.mark(Phase.STOP)
        if self.gpus:
            self.gpus.read_accounting(self._ours())
        self.server.stop()
        for sampler in (self.memory, self.gpus.sampler if self.gpus else None):
            if sampler:
                sampler.end()  # what it cost is known from here on
        self.tail.close()
        for table in self.tables:
            with contextlib.suppress(RecordError):
                table.close()

    # -- the phases ------------------------------------------------------------------------------------

    async def all(self) -> tuple[str, str]:
        """Every phase in turn; (outcome, reason)."""
        from harness.client import Client  # aiohttp is loaded only where an engine is talked to

        requests_table = self.table("requests", 0.0)
        await self._start()
        name = self.session.server.name if self.session.server else vllm.SERVED_NAME
        async with Client(self.server.url, self.server.key, name, self.load.logprobs) as client:
            started = await self._wait_healthy(client)
            if started is not None:
                return started
            await self._ask_workers(client, Phase.IDLE)
            await self._ask_pool(client)
            self.mark(Phase.IDLE)
            self.progress.at("idle")
            polling = asyncio.create_task(sample_metrics(client, self.table("metrics"), self.progress.live))
            try:
                await asyncio.sleep(SETTLE_S)
                if not self.attached:
                    await client.post("/collective_rpc", {"method": "loadfit_reset_peaks"})
                ended = await self._under_load(client, requests_table)
                if self.server.exit_code is None:
                    await self._ask_workers(client, Phase.LOAD)
                await asyncio.sleep(SETTLE_S)
                self._check_instruments()
                return ended
            finally:
                polling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await polling

    async def _start(self) -> None:
        """The samplers and the engine; an attached one leaves no quiet baseline to read, and no process of ours."""
        if self.attached:
            self.mark(Phase.START)
        if self.gpus:
            self.progress.at("reading the GPUs" if self.attached else "reading the quiet GPUs")
            self.gpus.sample(self.table("devices"), self.interval_s)
            await asyncio.sleep(BASELINE_S)
        self.mark(Phase.START)
        self.server.start()
        if self.server.started:
            host_interval_s = HOST_INTERVAL_S if self.gpus else MEMORY_INTERVAL_S
            self.memory = MemorySampler(self.server.guard_pid, self.table("memory"), host_interval_s)
            self.memory.start()

    async def _wait_healthy(self, client: Client) -> tuple[str, str] | None:
        """None once the server answers; else how it failed."""
        deadline = time.monotonic() + self.start_timeout_s
        self.progress.at("engine starts")
        while time.monotonic() < deadline:
            self._read_log()
            self._check_instruments()
            if self.server.exit_code is not None:
                return REFUSED, self.server.why()
            if await client.healthy() and await client.knows_us():
                self._read_log()
                return None
            await asyncio.sleep(0.1)
        said = log.reason(log.read_lines(self.server.log_path))
        return HUNG, f"not healthy after {self.start_timeout_s:.0f} s" + (f"; it said: {said}" if said else "")

    def _read_log(self) -> None:
        for time_ns, line in self.tail.new_lines():
            if log.LOADING.search(line):
                self.marks.setdefault(store.LOADING, time_ns)
            if log.LOADED.search(line):
                self.marks.setdefault(str(Phase.WEIGHTS_LOADED), time_ns)
            stage = log.stage(line)
            if stage:
                self.progress.at(stage)

    def _check_instruments(self) -> None:
        """Raises where the run can't go on: the disk is full, a GPU is lost, or somebody else is on it."""
        for sampler in (self.memory, self.gpus.sampler if self.gpus else None):
            if sampler and sampler.fault:
                raise sampler.fault
        if self.gpus and self.gpus.lost and self.server.exit_code is None:
            raise _EndedError(LOST, self.gpus.lost)
        if self.gpus and self.gpus.disturbed:
            raise _EndedError(DISTURBED, f"--isolation fail: {self.gpus.disturbed}")

    async def _ask_workers(self, client: Client, phase: str) -> None:
        """What each worker holds now; nothing where the probe is not there or does not answer."""
        if self.attached:
            return
        answer = await client.post("/collective_rpc", {"method": "loadfit_memory"})
        results = (answer or {}).get("results")
        if isinstance(results, list):
            self.workers[str(phase)] = [r for r in results if isinstance(r, dict)]

    async def _ask_pool(self, client: Client) -> None:
        """What /metrics tells of the pool."""
        text = await client.metrics()
        self.cache_config = read_cache_config(text.splitlines()) if text else {}

    async def _under_load(self, client: Client, table: store.TableWriter) -> tuple[str, str]:
        from harness.client import SEND_GAP_S, drive

        load, self.progress.total = self.load, self.load.requests
        try:
            prompt_of = (
                await prompts.real_text(client, load.common_tokens)
                if self.session.real_text
                else prompts.made_up(load.seed, self.session.vocab_size, load.common_tokens)
            )
        except EngineError as error:
            gone = await self._gone(client)
            return (DIED, gone) if gone else (SILENT, str(error))
        # The first requests of users are to start together: they queue while the scheduler is paused.
        paused = not (load.open or self.attached) and await client.post("/pause?mode=keep") is not None

        all_sent = False

        async def start_together() -> None:
            if paused:
                await asyncio.sleep(SETTLE_S)
                self.mark(store.RESUMED)
                await client.post("/resume")
                if all_sent:
                    self.mark(Phase.DRAIN)

        def on_all_sent() -> None:
            nonlocal all_sent
            all_sent = True
            if not paused or store.RESUMED in self.marks:  # while they are held back nothing drains
                self.mark(Phase.DRAIN)

        def on_answer(answer: Answer) -> None:
            self._record(table, answer)

        self.mark(Phase.LOAD)
        self.progress.at("under load")
        self.gaps = client.gaps_ns
        driving = asyncio.create_task(
            drive(
                client, load, prompt_of, on_answer, keep_text=self.session.real_text,
                # While the scheduler is held back the order in which they queue is to be ours.
                gap_s=SEND_GAP_S if paused else 0.0, on_start=start_together, on_all_sent=on_all_sent,
            )
        )  # fmt: skip
        try:
            ended = await self._watch(client, driving)
        finally:
            driving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driving
        return ended

    async def _watch(self, client: Client, driving: asyncio.Task[None]) -> tuple[str, str]:
        deadline = time.monotonic() + self.load.timeout_s
        while not driving.done():
            await asyncio.wait({driving}, timeout=0.25)
            self._check_instruments()
            self.progress.on_change(self.progress)
            if self.server.exit_code is not None:
                return DIED, self.server.why()
            if time.monotonic() > deadline:
                return TIMED_OUT, (
                    f"{self.progress.done} of {self.progress.total} requests ended within load.timeout_s = "
                    f"{self.load.timeout_s:.0f} s"
                )
        await driving
        failed = self.progress.total - self.answers["ok"]
        gone = await self._gone(client) if failed else None
        if gone:
            return DIED, gone
        if self.answers["ok"] == 0:
            return SILENT, f"none of {failed} requests was answered: {self._first_error}"
        if failed:
            return FAILED, f"{failed} of {self.progress.total} requests failed; the first: {self._first_error}"
        return COMPLETED, ""

    async def _gone(self, client: Client) -> str | None:
        """Why the engine is no longer there, None where it is: one that died needs a moment to be gone."""
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.server.exit_code is not None:
                return self.server.why()
            if await client.healthy():
                return None
            await asyncio.sleep(0.1)
        return f"it no longer says that it is healthy, and has not ended after {GONE_TIMEOUT_S:.0f} s"

    _first_error = ""

    def _record(self, table: store.TableWriter, answer: Answer) -> None:
        self.answers[answer.status] = self.answers.get(answer.status, 0) + 1
        self._first_error = self._first_error or answer.error
        self.progress.done += answer.status != "unfinished"
        self.progress.on_change(self.progress)
        asked = answer.request
        table.append(
            asked.index, asked.prompt_tokens, asked.output_tokens, answer.tokens_out, answer.sent_ns,
            answer.first_ns, answer.end_ns, answer.status, answer.error, answer.text,
        )  # fmt: skip
