"""vLLM's own scheduler, driven without a model: the oracle that nobody here wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.scenario import Load
from harness.simulate import Limits
from harness.traffic import prompt_ids, requests


@dataclass
class OracleFigures:
    steps: int = 0
    preemptions: int = 0
    peak_running: int = 0
    peak_waiting: int = 0
    peak_blocks_used: int = 0
    tokens_scheduled: int = 0


def run(load: Load, limits: Limits, folder: Path, *, per_step: list | None = None) -> OracleFigures:
    """The figures that vLLM's Scheduler gives for ``load`` (all arrivals as in harness.simulate)."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
                "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1,
                "intermediate_size": 64, "vocab_size": 32000, "head_dim": 64, "torch_dtype": "bfloat16",
                "max_position_embeddings": max(limits.max_model_len, 64), "rms_norm_eps": 1e-5,
            }
        )
    )  # fmt: skip
    config = EngineArgs(
        model=str(folder), skip_tokenizer_init=True, max_model_len=limits.max_model_len,
        max_num_seqs=limits.max_num_seqs, max_num_batched_tokens=limits.max_num_batched_tokens,
        enable_prefix_caching=limits.enable_prefix_caching, async_scheduling=False,
    ).create_engine_config()  # fmt: skip
    config.cache_config.block_size = limits.block_size
    config.cache_config.num_gpu_blocks = limits.num_blocks
    spec = FullAttentionSpec(limits.block_size, num_kv_heads=1, head_size=64, dtype=torch.bfloat16)
    scheduler = Scheduler(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(limits.num_blocks, [], [KVCacheGroupSpec(["l"], spec)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=limits.block_size,
        log_stats=True,
    )
    init_none_hash(sha256)
    hasher = get_request_block_hasher(limits.block_size, sha256) if limits.enable_prefix_caching else None

    work = requests(load)
    end = {f"r{r.index}": r.output_tokens for r in work}

    def add(r) -> None:
        scheduler.add_request(
            Request(
                f"r{r.index}", prompt_ids(r, load.seed, 32000),
                SamplingParams(max_tokens=r.output_tokens, ignore_eos=True), None, block_hasher=hasher,
            )
        )  # fmt: skip

    for r in work[: load.concurrency]:
        add(r)
    later = iter(work[load.concurrency :])
    out = OracleFigures()
    while scheduler.has_unfinished_requests():
        plan = scheduler.schedule()
        out.steps += 1
        out.preemptions += len(plan.preempted_req_ids or ())
        out.tokens_scheduled += plan.total_num_scheduled_tokens
        running, waiting = scheduler.get_request_counts()
        used = round(scheduler.kv_cache_manager.usage * (limits.num_blocks - 1))
        out.peak_running = max(out.peak_running, running)
        out.peak_waiting = max(out.peak_waiting, waiting)
        out.peak_blocks_used = max(out.peak_blocks_used, used)
        if per_step is not None:
            per_step.append((used, running, waiting, out.preemptions))
        ids = list(plan.num_scheduled_tokens)
        done = []
        sampled = []
        for i in ids:
            request = scheduler.requests[i]
            complete = request.num_computed_tokens >= request.num_tokens
            sampled.append([7] if complete else [])
            if complete and request.num_output_tokens + 1 == end[i]:
                done.append(i)
        scheduler.update_from_output(
            plan, ModelRunnerOutput(ids, {x: n for n, x in enumerate(ids)}, sampled_token_ids=sampled)
        )
        for _ in done:
            following = next(later, None)
            if following is not None:
                add(following)
    return out
