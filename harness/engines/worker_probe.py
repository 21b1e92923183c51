"""Runs inside vLLM's worker: what the worker itself holds, in bytes, read at phase marks.

vLLM mixes this class into its worker by ``--worker-extension-cls harness.engines.worker_probe.WorkerProbe``;
``collective_rpc("loadfit_memory")`` calls it between engine steps, in every worker.

All is read from the worker as it stands, so no hook of vLLM's is needed. Two figures are gone by then and are written
down as they pass: the weights as loaded (the CPU backend repacks most of them into buffers that PyTorch no longer
sees; vLLM 0.32, oneDNN), and what the capture of CUDA graphs took.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

_seen: dict[str, int | None] = {"weights_bytes": None, "graphs_bytes": None}

# Figures that vLLM's GPU worker keeps of its start (vllm/v1/worker/gpu_worker.py): ours -> its names, newest first.
_KEPT = {
    "requested_bytes": ("requested_memory",),
    "consumed_bytes": ("total_consumed",),  # weights and non-torch together, from 0.27 on
    "non_torch_bytes": ("non_torch_memory",),  # before that
    "activation_peak_bytes": ("peak_activation_memory",),  # with the graphs' estimate, where that is applied
    "graphs_estimated_bytes": ("cudagraph_memory_estimate",),
    "available_bytes": ("available_kv_cache_memory_bytes",),
}


class WorkerProbe:
    """Methods added to vLLM's worker. Nothing here changes what the worker does."""

    model_runner: Any

    def loadfit_memory(self) -> dict[str, Any]:
        """What this worker and its GPU hold. A tensor that several names share counts once. A figure that can't be
        read is None, one that this kind of worker does not have is left out."""
        answer: dict[str, Any] = {
            "pid": os.getpid(),
            "rank": getattr(self, "rank", None),
            **_seen,
            "kv_bytes": _bytes_of(lambda: _flat(self.model_runner.kv_caches)),
            "num_blocks": _whole(lambda: self.vllm_config.cache_config.num_gpu_blocks),  # type: ignore[attr-defined]
            "block_size": _whole(lambda: self.vllm_config.cache_config.block_size),  # type: ignore[attr-defined]
        }
        if hasattr(self, "init_snapshot"):
            answer |= _of_the_start(self) | _of_the_device(self.device)  # type: ignore[attr-defined]
        return answer

    def loadfit_reset_peaks(self) -> None:
        """Let PyTorch's peaks begin anew; without a GPU there are none."""
        if hasattr(self, "init_snapshot"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)  # type: ignore[attr-defined]


def _of_the_start(worker: Any) -> dict[str, int | None]:
    init = worker.init_snapshot
    answer: dict[str, int | None] = {
        "cuda_total_bytes": _whole(lambda: init.total_memory),
        "free_at_init_bytes": _whole(lambda: init.free_memory),
        "torch_at_init_bytes": _whole(lambda: init.torch_memory),
        "model_bytes": _whole(lambda: worker.model_runner.model_memory_usage),
        "graphs_applied": _whole(_graphs_applied),
    }
    for ours, theirs in _KEPT.items():
        answer[ours] = next((_whole(partial(getattr, worker, name)) for name in theirs if hasattr(worker, name)), None)
    return answer


def _graphs_applied() -> int:
    """1 where the estimate of the graphs is taken from the KV budget."""
    from vllm import envs

    return int(bool(envs.VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS))


def _of_the_device(device: Any) -> dict[str, Any]:
    """PyTorch's allocator and the GPU as CUDA sees it. ``graph_pool_...``: of its bytes, those in pools of their own,
    which CUDA graphs keep."""
    import torch

    answer: dict[str, Any] = {"uuid": None, "name": None, "cuda_free_bytes": None}
    with contextlib.suppress(Exception):  # an older PyTorch tells no UUID
        properties = torch.cuda.get_device_properties(device)
        answer["name"] = properties.name
        answer["uuid"] = str(properties.uuid)
    with contextlib.suppress(Exception):  # what was read stays
        answer["cuda_free_bytes"] = int(torch.cuda.mem_get_info(device)[0])
        stats = torch.cuda.memory_stats(device)
        for what in ("allocated", "reserved"):
            for when in ("current", "peak"):
                answer[f"torch_{what}_{when}_bytes"] = int(stats[f"{what}_bytes.all.{when}"])
        own_pools = [s for s in torch.cuda.memory_snapshot() if tuple(s.get("segment_pool_id", (0, 0))) != (0, 0)]
        answer["graph_pool_reserved_bytes"] = sum(int(s["total_size"]) for s in own_pools)
        answer["graph_pool_allocated_bytes"] = sum(int(s["allocated_size"]) for s in own_pools)
    return answer


def _whole(read: Callable[[], Any]) -> int | None:
    try:
        value = read()
        return None if value is None else int(value)
    except Exception:
        return None


def _flat(tensors: Any) -> list[Any]:
    if isinstance(tensors, dict):
        tensors = list(tensors.values())
    if isinstance(tensors, (list, tuple)):
        return [t for item in tensors for t in _flat(item)]
    return [tensors]


def _bytes_of(read: Callable[[], Iterable[Any]]) -> int | None:
    try:
        storages: dict[int, int] = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in read()}
    except Exception:
        return None
    return sum(storages.values())


def _watch_loading() -> None:
    """Count the model's tensors when vLLM has loaded them, before it processes them."""
    from vllm.model_executor.model_loader import base_loader

    process = base_loader.process_weights_after_loading

    def count_then_process(model: Any, *args: Any, **kwargs: Any) -> Any:
        _seen["weights_bytes"] = _bytes_of(lambda: [*model.parameters(), *model.buffers()])
        return process(model, *args, **kwargs)

    base_loader.process_weights_after_loading = count_then_process


def _watch_capture() -> None:
    """Keep what vLLM's own capture of graphs returns: the bytes that it took from the device."""
    from vllm.platforms import current_platform

    if not current_platform.is_cuda():
        return
    import importlib

    for name in ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner"):  # Model Runner V1, V2
        try:
            runner = importlib.import_module(name).GPUModelRunner
        except ImportError:  # this vLLM has one of them only
            continue
        _keep_result(runner)


def _keep_result(runner: Any) -> None:
    capture = runner.capture_model

    def capture_then_keep(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken = capture(self, *args, **kwargs)
        _seen["graphs_bytes"] = _whole(lambda: taken)
        return taken

    runner.capture_model = capture_then_keep


for _watch, _what in ((_watch_loading, "weights can't be counted"), (_watch_capture, "graphs can't be counted")):
    try:
        _watch()
    except Exception as error:  # another vLLM: the run goes on, the ledger says less
        print(f"loadfit: {_what} in this vLLM: {type(error).__name__}: {error}", flush=True)
