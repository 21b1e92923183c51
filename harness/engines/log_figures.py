"""The figures of vLLM's workers from its log, by the names under which the worker probe gives them.

For where the probe does not answer. What vLLM prints has two decimals of a GiB. Lines of V0 (0.5 to 0.8) and of V1
(0.8 to 0.33); which of them are printed depends on the version and on the level of the log.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from harness.units import GIB


def _pattern(text: str) -> re.Pattern[str]:
    """``text`` with ``{name}`` where a number of GiB stands."""
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>-?\\d+(?:\\.\\d+)?)", text), re.ASCII)


_START = (
    r"Free memory on device \({free_at_init_bytes}/{cuda_total_bytes} GiB\) on startup\..*?{requested_bytes} GiB\)\. "
)
_LINES = tuple(
    map(
        _pattern,
        (
            r"worker init memory snapshot: .*?free_memory={free_at_init_bytes}GiB, "
            r"total_memory={cuda_total_bytes}GiB.*?torch_memory={torch_at_init_bytes}",
            r"worker requested memory: {requested_bytes} ?GiB",
            r"(?:Model loading|Loading model weights) took {model_bytes} ?Gi?B",  # GB: GiB all the same
            r"Estimated CUDA graph memory: {graphs_estimated_bytes} ?GiB",
            r"Graph capturing finished in .*?took {graphs_bytes} ?GiB",
            r"Available KV cache memory: {available_bytes} ?GiB",
            # 0.19: three terms; later: weights and non-torch together
            _START + r"Actual usage is {model_bytes} GiB for weight, {activation_peak_bytes} GiB for peak activation, "
            r"{non_torch_bytes} GiB for non-torch memory, and {graphs_bytes} GiB for CUDAGraph memory",
            _START + r"Actual usage is {consumed_bytes} GiB for consumed memory.*?"
            r"{activation_peak_bytes} GiB for peak activation, and {graphs_bytes} GiB for CUDAGraph memory",
            r"total_gpu_memory \({cuda_total_bytes}GiB\) x gpu_memory_utilization \(\d[.\d]*\) = {requested_bytes}GiB",
            r"model weights take {model_bytes}GiB; non_torch_memory takes {non_torch_bytes}GiB; "
            r"PyTorch activation peak memory takes {activation_peak_bytes}GiB; "
            r"the rest of the memory reserved for KV Cache is {available_bytes}GiB",
            # 0.6.4 and 0.6.5: its non_torch_memory is all of the device's that is not PyTorch's, the context too
            r"Memory profiling results: .*?total_gpu_memory={cuda_total_bytes}GiB.*? peak_torch_memory="
            r"{torch_peak_bytes}GiB.*? kv_cache_size={available_bytes}GiB",
            r"torch peak memory increase: {activation_peak_bytes}GiB; "
            r"non-torch forward increase memory: {non_torch_bytes}GiB; weights memory: {model_bytes}GiB",
        ),
    )
)
_WORKER = re.compile(r"^\((?:(?:Vllm)?Worker|EngineCore|RayWorkerWrapper)\w*(?: rank=\d+)? pid=(?P<pid>\d+)\b")


# Printed where the estimate of the graphs is taken from the KV budget; the activation peak then holds it too.
_APPLIED = "CUDA graph memory profiling is enabled"


def read(lines: Iterable[str]) -> list[dict[str, int]]:
    """One mapping for each worker that stated a figure, in order of their first; bytes."""
    workers: dict[str, dict[str, int]] = {}
    for line in lines:
        for pattern in _LINES:
            match = pattern.search(line)
            if match:
                who = _WORKER.match(line)
                figures = workers.setdefault(who["pid"] if who else "", {})
                figures |= {name: round(float(text) * GIB) for name, text in match.groupdict().items()}
        if _APPLIED in line and (who := _WORKER.match(line)):
            workers.setdefault(who["pid"], {})["graphs_applied"] = 1
    for figures in workers.values():
        peak = figures.pop("torch_peak_bytes", None)  # with the weights in it
        if peak is not None and "model_bytes" in figures:
            figures["activation_peak_bytes"] = peak - figures["model_bytes"]
    return list(workers.values())
