"""Runs inside vLLM's worker: what the worker itself holds, in bytes, read at phase marks.

vLLM mixes this class into its worker by ``--worker-extension-cls harness.engines.worker_probe.WorkerProbe``;
``collective_rpc("loadfit_memory")`` calls it between engine steps.

The weights are counted at the moment when they are loaded and not yet processed: the CPU backend then
repacks most of them into buffers that PyTorch no longer sees (vLLM 0.32, oneDNN).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

_as_loaded: dict[str, int | None] = {"weights_bytes": None}


class WorkerProbe:
    """Methods added to vLLM's worker. Nothing here changes the worker."""

    model_runner: Any

    def loadfit_memory(self) -> dict[str, Any]:
        """Bytes of the model's tensors as loaded and of the KV tensors, and this process's id.

        A tensor that several names share counts once. A figure that can't be read is None.
        """
        return {
            "pid": os.getpid(),
            "weights_bytes": _as_loaded["weights_bytes"],
            "kv_bytes": _bytes_of(lambda: _flat(self.model_runner.kv_caches)),
        }


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
        _as_loaded["weights_bytes"] = _bytes_of(lambda: [*model.parameters(), *model.buffers()])
        return process(model, *args, **kwargs)

    base_loader.process_weights_after_loading = count_then_process


try:
    _watch_loading()
except Exception as error:  # another vLLM: the run goes on, the ledger says less
    print(f"loadfit: weights can't be counted in this vLLM: {type(error).__name__}: {error}", flush=True)
