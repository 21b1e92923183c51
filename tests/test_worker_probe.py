"""The worker probe on a GPU worker: its names are those of vLLM's own source, its answers those of the worker."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

GIB = 2**30
VLLM = importlib.util.find_spec("vllm")
LEGACY = {"non_torch_memory"}  # what workers before total_consumed kept


def vllm_file(name: str) -> ast.Module:
    if VLLM is None or not VLLM.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    return ast.parse((Path(VLLM.submodule_search_locations[0]) / name).read_text(encoding="utf-8"))


def assigned(tree: ast.AST) -> set[str]:
    """Every ``self.x`` that is assigned, and every annotated field."""
    targets = [t for n in ast.walk(tree) if isinstance(n, ast.Assign) for t in n.targets]
    targets += [n.target for n in ast.walk(tree) if isinstance(n, (ast.AnnAssign, ast.AugAssign))]
    return {t.attr if isinstance(t, ast.Attribute) else getattr(t, "id", "") for t in targets}


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The probe with a torch and a vLLM of two functions, as on a GPU."""
    stats = {"allocated_bytes.all.current": 70 * GIB, "allocated_bytes.all.peak": 72 * GIB,
             "reserved_bytes.all.current": 73 * GIB, "reserved_bytes.all.peak": 74 * GIB}  # fmt: skip
    segments = [
        {"segment_pool_id": (0, 0), "total_size": 72 * GIB, "allocated_size": 70 * GIB},
        {"segment_pool_id": (0, 1), "total_size": GIB, "allocated_size": GIB // 4},
    ]
    reset: list[object] = []
    cuda = SimpleNamespace(
        get_device_properties=lambda d: SimpleNamespace(name="NVIDIA H100", uuid="0000-1111"),
        mem_get_info=lambda d: (2 * GIB, 79 * GIB), memory_stats=lambda d: stats, memory_snapshot=lambda: segments,
        reset_peak_memory_stats=reset.append, resets=reset,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(
        sys.modules, "vllm", SimpleNamespace(envs=SimpleNamespace(VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS=True))
    )
    sys.modules.pop("harness.engines.worker_probe", None)
    import harness.engines.worker_probe as module

    yield module  # type: ignore[misc]
    sys.modules.pop("harness.engines.worker_probe", None)


def worker(module: Any, **attributes: Any) -> Any:
    class GpuWorker(module.WorkerProbe):
        pass

    made = GpuWorker()
    vars(made).update(
        rank=1, device="cuda:1", requested_memory=75 * GIB, peak_activation_memory=3 * GIB,
        cudagraph_memory_estimate=GIB, available_kv_cache_memory_bytes=55 * GIB,
        init_snapshot=SimpleNamespace(total_memory=79 * GIB, free_memory=78 * GIB, torch_memory=0),
        vllm_config=SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks=1000, block_size=16)),
        model_runner=SimpleNamespace(model_memory_usage=15 * GIB, kv_caches=[]), **attributes,
    )  # fmt: skip
    return made


def test_every_name_is_one_that_vllms_worker_keeps(probe: ModuleType) -> None:
    kept = assigned(vllm_file("v1/worker/gpu_worker.py"))
    names = {name for theirs in probe._KEPT.values() for name in theirs}
    assert names - kept == LEGACY
    assert "init_snapshot" in kept
    assert {"total_memory", "free_memory", "torch_memory"} <= assigned(vllm_file("utils/mem_utils.py"))
    for runner in ("v1/worker/gpu_model_runner.py", "v1/worker/gpu/model_runner.py"):
        tree = vllm_file(runner)
        assert "model_memory_usage" in assigned(tree)
        (capture,) = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "capture_model"]
        assert ast.unparse(capture.returns or ast.Constant(None)) == "int"


def test_a_worker_of_today(probe: ModuleType) -> None:
    told = worker(probe, total_consumed=16 * GIB).loadfit_memory()
    assert told["consumed_bytes"] == 16 * GIB and told["non_torch_bytes"] is None
    assert (told["model_bytes"], told["available_bytes"], told["graphs_applied"]) == (15 * GIB, 55 * GIB, 1)
    at_init = (told["cuda_total_bytes"], told["free_at_init_bytes"], told["torch_at_init_bytes"])
    assert at_init == (79 * GIB, 78 * GIB, 0)
    assert (told["num_blocks"], told["block_size"], told["rank"]) == (1000, 16, 1)
    assert (told["uuid"], told["name"], told["cuda_free_bytes"]) == ("0000-1111", "NVIDIA H100", 2 * GIB)
    assert (told["torch_allocated_current_bytes"], told["torch_reserved_peak_bytes"]) == (70 * GIB, 74 * GIB)
    assert (told["graph_pool_reserved_bytes"], told["graph_pool_allocated_bytes"]) == (GIB, GIB // 4)


def test_an_older_worker_keeps_the_non_torch_part(probe: ModuleType) -> None:
    told = worker(probe, non_torch_memory=GIB).loadfit_memory()
    assert told["consumed_bytes"] is None and told["non_torch_bytes"] == GIB


def test_peaks_are_reset_on_its_own_device(probe: ModuleType) -> None:
    worker(probe).loadfit_reset_peaks()
    assert sys.modules["torch"].cuda.resets == ["cuda:1"]


def test_what_pytorch_does_not_tell_is_left_out_and_the_rest_stays(
    probe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.delattr(sys.modules["torch"].cuda, "memory_snapshot")
    monkeypatch.delattr(sys.modules["torch"].cuda, "get_device_properties")
    told = worker(probe).loadfit_memory()
    assert told["uuid"] is None and "graph_pool_reserved_bytes" not in told
    assert told["torch_reserved_current_bytes"] == 73 * GIB


def test_a_worker_without_a_gpu_tells_what_it_has(probe: ModuleType) -> None:
    class CpuWorker(probe.WorkerProbe):  # type: ignore[misc,name-defined]
        model_runner = SimpleNamespace(kv_caches=[])

    told = CpuWorker().loadfit_memory()
    assert told["kv_bytes"] == 0 and "cuda_total_bytes" not in told
    CpuWorker().loadfit_reset_peaks()
    assert sys.modules["torch"].cuda.resets == []


def test_what_the_capture_of_graphs_took_is_kept(probe: ModuleType) -> None:
    class Runner:
        def capture_model(self, *, profile_only: bool = False) -> int:
            return 7 if profile_only else GIB

    probe._keep_result(Runner)
    assert Runner().capture_model(profile_only=True) == 7
    assert Runner().capture_model() == GIB
    assert worker(probe).loadfit_memory()["graphs_bytes"] == GIB


class Engine:
    """As much of vLLM's scheduler as the recorder is put before."""

    def schedule(self) -> SimpleNamespace:
        return SimpleNamespace(tokens=8)  # another vLLM calls it otherwise

    def update_from_output(self, plan: Any) -> str:
        return "outputs"


@pytest.mark.parametrize("steps", ["steps.csv", "no/such/folder/steps.csv"])
def test_a_recorder_that_can_not_record_lets_the_engine_run(
    steps: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    names = ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched", "vllm.v1.core.sched.scheduler")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[names[-1]], "Scheduler", Engine, raising=False)
    monkeypatch.delitem(sys.modules, "harness.engines.scheduler_probe", raising=False)
    monkeypatch.setenv("LOADFIT_STEPS", str(tmp_path / steps))
    recorder = importlib.import_module("harness.engines.scheduler_probe").RecordingScheduler()
    del sys.modules["harness.engines.scheduler_probe"]  # the next one is to have the real vLLM
    for _ in range(2):
        assert recorder.update_from_output(recorder.schedule()) == "outputs"
    if steps == "steps.csv":
        assert "# recording ended: AttributeError" in (tmp_path / steps).read_text()
    else:
        assert "the scheduler's steps can't be written down" in capfd.readouterr().out


def test_both_recorders_are_vllms_own_schedulers() -> None:
    pytest.importorskip("vllm")
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from harness.engines.scheduler_probe import RecordingAsyncScheduler, RecordingScheduler

    assert issubclass(RecordingAsyncScheduler, AsyncScheduler)
    assert issubclass(RecordingScheduler, Scheduler) and not issubclass(RecordingScheduler, AsyncScheduler)
    assert RecordingAsyncScheduler.schedule is RecordingScheduler.schedule
