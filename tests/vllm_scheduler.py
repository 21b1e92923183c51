"""vLLM's own scheduler, driven without a model: the oracle that nobody here wrote."""

from __future__ import annotations

import itertools
import json
import math
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from harness.catalog import engine_defaults
from harness.engines.vllm import installed
from harness.ledger import LoadFigures
from harness.scenario import Load
from harness.simulate import Limits
from harness.simulate.limits import Speculation
from harness.simulate.step_time import TIMELESS, StepTime
from harness.simulate.tables import CHUNKED, CROSS, FULL, SLIDING, Table
from harness.traffic import arrivals_s, prompt_ids, requests

VOCABULARY = 32_000
WHISPER = {
    "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": 64, "encoder_layers": 1,
    "decoder_layers": 1, "encoder_attention_heads": 1, "decoder_attention_heads": 1, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "is_encoder_decoder": True, "pad_token_id": 0,
}  # fmt: skip
# The scheduler's options that Limits names as vLLM does.
OPTIONS = ("enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_reserve_full_isl", "watermark")


def as_installed(limits: Limits) -> Limits:
    """``limits`` with the rules of the vLLM that is installed."""
    found = installed()
    assert found is not None
    return replace(limits, cuts_lone_prefill=engine_defaults(found.version).cuts_lone_prefill)


def queues_adapters_alike() -> bool:
    """Whether the vLLM that is installed keeps requests without a free LoRA slot in their place, as is simulated."""
    found = installed()
    return found is not None and engine_defaults(found.version).skipped_keep_their_place


@cache
def _engine_config(
    max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int, caching: bool, encodes: bool = False
) -> Any:
    """vLLM's own VllmConfig for a model that is never built; ``encodes``: an encoder-decoder."""
    from vllm.engine.arg_utils import EngineArgs

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps(
                {
                    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
                    "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1,
                    "intermediate_size": 64, "vocab_size": VOCABULARY, "head_dim": 64,
                    "torch_dtype": "bfloat16", "max_position_embeddings": max_model_len,
                    "rms_norm_eps": 1e-5,
                    **(WHISPER | {"max_target_positions": max_model_len} if encodes else {}),
                }
            )
        )  # fmt: skip
        return EngineArgs(
            model=folder, skip_tokenizer_init=True, max_model_len=max_model_len,
            max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=caching and not encodes, async_scheduling=False,
        ).create_engine_config()  # fmt: skip


class Detail(NamedTuple):
    """What a step has beside the counts: its tokens, who runs after it (in order), whom it preempted."""

    tokens: int
    running: list[int]
    preempted: set[int]


def _spec(table: Table) -> Any:
    """vLLM's own spec of a block table of one layer."""
    import torch
    from vllm.v1 import kv_cache_interface as kinds

    if table.kind not in (FULL, SLIDING, CHUNKED, CROSS):
        return kinds.MambaSpec(table.block_size, shapes=((2, 512),), dtypes=(torch.float32,))
    keys = {"block_size": table.block_size, "num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}
    if table.kind == FULL:
        return kinds.FullAttentionSpec(**keys)
    if table.kind == CROSS:
        return kinds.CrossAttentionSpec(**keys)
    if table.kind == SLIDING:
        return kinds.SlidingWindowSpec(**keys, sliding_window=table.window)
    return kinds.ChunkedLocalAttentionSpec(**keys, attention_chunk_size=table.window)


def _speculative(speculation: Speculation) -> Any:
    """vLLM's own SpeculativeConfig, without the draft model that its constructor would look for."""
    from vllm.config.speculative import SpeculativeConfig

    if not speculation.tokens:
        return None
    config = object.__new__(SpeculativeConfig)
    method = "eagle3" if speculation.drops_block else "draft_model" if speculation.rows else "ngram"
    for key, value in {
        "method": method, "num_speculative_tokens": speculation.tokens, "parallel_drafting": False,
        "num_speculative_tokens_per_batch_size": None, "disable_eagle_block_drop": False, "draft_model_config": None,
    }.items():  # fmt: skip
        object.__setattr__(config, key, value)
    return config


@contextmanager
def _encoding(tokens: int) -> Iterator[None]:
    """A scheduler that is made now takes ``tokens`` for each clip, of which no processor says so."""
    from vllm.v1.core.encoder_cache_manager import compute_mm_encoder_budget
    from vllm.v1.core.sched import scheduler

    def budget(config: Any, *_: Any, **__: Any) -> Any:
        compute, cache = compute_mm_encoder_budget(config.scheduler_config, {"audio": tokens})
        return SimpleNamespace(
            mm_max_toks_per_item={"audio": tokens}, encoder_compute_budget=compute, encoder_cache_size=cache
        )

    with patch.object(scheduler, "MultiModalBudget", budget) if tokens else nullcontext():
        yield


def _clip(index: int, tokens: int) -> list[Any]:
    """What a request has of an encoder."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

    return [MultiModalFeatureSpec(None, "audio", f"clip{index}", PlaceholderRange(0, tokens))]


def run(
    load: Load, limits: Limits, *, per_step: list[tuple[int, int, int, int]] | None = None,
    loop_seconds: list[float] | None = None, step_time: StepTime = TIMELESS,
    latencies: dict[str, list[int]] | None = None, details: list[Detail] | None = None, work: list[Any] | None = None,
) -> LoadFigures:  # fmt: skip
    """The figures that vLLM's Scheduler gives for ``load`` (all arrivals as in harness.simulate).

    ``per_step`` receives (blocks used, running, waiting, preemptions so far) after each schedule, ``details`` the rest,
    ``latencies`` the picoseconds of each ttft, itl, tpot, queue and e2e, ``loop_seconds`` the time spent in vLLM's
    schedule and update_from_output. ``step_time`` tells when arrivals are due. ``work``: the requests, where they
    aren't those of ``load``.
    """
    from vllm.config.lora import LoRAConfig
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    config = _engine_config(
        limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len, limits.enable_prefix_caching,
        bool(limits.encoder_tokens),
    )  # fmt: skip
    config.cache_config.block_size = limits.block_size
    config.cache_config.num_gpu_blocks = limits.num_blocks
    for name in OPTIONS:
        setattr(config.scheduler_config, name, getattr(limits, name))
    config.scheduler_config.verify_max_model_len(limits.max_model_len)
    config.scheduler_config.policy = limits.scheduling_policy
    config.scheduler_config.async_scheduling = limits.async_scheduling
    speculation = limits.speculation
    config.speculative_config = _speculative(speculation)
    config.lora_config = LoRAConfig(max_loras=limits.max_loras) if limits.max_loras else None
    sizes = [t.block_size for t in limits.block_tables]
    # As resolve_kv_cache_block_sizes (vllm/v1/core/kv_cache_utils.py).
    block_size = math.lcm(*sizes) if len(sizes) > 1 else sizes[0]
    hash_size = math.gcd(*sizes) if limits.enable_prefix_caching else block_size
    with _encoding(limits.encoder_tokens):
        scheduler = (AsyncScheduler if limits.async_scheduling else Scheduler)(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                limits.num_blocks, [],
                [KVCacheGroupSpec([f"l{i}"], _spec(t)) for i, t in enumerate(limits.block_tables)],
                prefix_cache_retention_interval=config.cache_config.prefix_cache_retention_interval,
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=block_size,
            hash_block_size=hash_size,
            log_stats=True,
        )
    init_none_hash(sha256)
    hasher = get_request_block_hasher(hash_size, sha256) if limits.enable_prefix_caching else None

    conversations: dict[int, deque[Any]] = {}
    for r in work or requests(load):
        conversations.setdefault(r.conversation, deque()).append(r)
    prompts: dict[int, list[int]] = {}  # of the turns that were sent

    def add(r: Any) -> None:
        said = prompts[r.index - 1] + [10 + r.index - 1] * known[r.index - 1].output_tokens if r.turn else []
        prompts[r.index], known[r.index] = prompt_ids(r, load.seed, VOCABULARY, load.common_tokens, said), r
        scheduler.add_request(
            Request(
                f"r{r.index}", prompts[r.index], SamplingParams(max_tokens=r.output_tokens, ignore_eos=True), None,
                block_hasher=hasher, priority=r.priority, arrival_time=float(len(prompts)),
                lora_request=LoRARequest(f"a{r.adapter}", r.adapter, "/") if r.adapter else None,
                mm_features=_clip(r.index, limits.encoder_tokens) if limits.encoder_tokens else None,
            )
        )  # fmt: skip

    known: dict[int, Any] = {}
    times = arrivals_s(load)
    queued = deque(conversations.values())
    due: list[tuple[int, int, int, Any]] = []  # when a request comes, whose end brings it, the request
    for i in range(len(queued) if times else load.concurrency):
        first = queued.popleft()
        due.append((round(next(times) * 10**12) if times else 0, -1, i, first.popleft()))
    due.sort(key=lambda d: d[:3])
    spent, under_way = 0.0, deque()
    now_ps = began_ps = 0
    decoding: set[str] = set()
    log: dict[str, list[int]] = {}  # of each request: when it came, first ran, and had tokens
    guesses: dict[str, int] = {}  # steps of each request in which it had drafts
    steps = preemptions = tokens = peak_running = peak_waiting = peak_blocks = 0
    while due or scheduler.has_unfinished_requests():
        if not scheduler.has_unfinished_requests():
            now_ps = began_ps = max(now_ps, due[0][0])
        while due and due[0][0] <= (began_ps if limits.async_scheduling else now_ps):
            came_ps, _, _, rest = due.pop(0)
            r = rest if rest else queued.popleft().popleft()
            add(r)
            log[f"r{r.index}"] = [came_ps]
        begun = time.perf_counter()
        plan = scheduler.schedule()
        spent += time.perf_counter() - begun
        steps += 1
        preemptions += len(plan.preempted_req_ids or ())
        tokens += plan.total_num_scheduled_tokens
        running, waiting = scheduler.get_request_counts()
        used = round(scheduler.kv_cache_manager.usage * (limits.num_blocks - 1))
        peak_running, peak_waiting = max(peak_running, running), max(peak_waiting, waiting)
        peak_blocks = max(peak_blocks, used)
        if per_step is not None:
            per_step.append((used, running, waiting, preemptions))
        if details is not None:
            gone = {int(i[1:]) for i in plan.preempted_req_ids or ()}
            details.append(
                Detail(plan.total_num_scheduled_tokens, [int(r.request_id[1:]) for r in scheduler.running], gone)
            )
        ids = list(plan.num_scheduled_tokens)
        samples = {i: not scheduler.requests[i].is_prefill_chunk for i in ids}
        began_ps, now_ps = now_ps, now_ps + _step_ps(plan, scheduler.requests, decoding, step_time)
        for i in ids:
            log[i] += [began_ps] * (len(log[i]) == 1) + [now_ps] * samples[i]
        under_way.append((plan, samples))
        if len(under_way) <= limits.async_scheduling:  # as EngineCore.step_with_batch_queue: one step ahead
            continue
        plan, samples = under_way.popleft()
        ids = list(samples)
        served = [scheduler.requests[i] for i in ids if i in scheduler.requests]
        # Rows beside a request that has just been admitted are there for their shape: they hold no drafts.
        padded = {r.req_id for r in plan.scheduled_new_reqs} | set(plan.scheduled_cached_reqs.resumed_req_ids)
        sampled = []
        for i in ids:
            drafts, right = len(plan.scheduled_spec_decode_tokens.get(i, [])), 0
            if drafts and samples[i] and i in scheduler.requests and i not in padded:
                right = min(speculation.right(guesses.get(i, 0)), drafts)
                guesses[i] = guesses.get(i, 0) + 1
            # A token of its own for each request, so that no two requests ever share a block.
            sampled.append([10 + int(i[1:])] * (1 + right) if samples[i] else [])
        output = ModelRunnerOutput(ids, {x: n for n, x in enumerate(ids)}, sampled_token_ids=sampled)
        begun = time.perf_counter()
        scheduler.update_from_output(plan, output)
        spent += time.perf_counter() - begun
        if speculation.tokens and not limits.async_scheduling:  # as EngineCore.post_step
            scheduler.update_draft_token_ids(DraftTokenIds(ids, [[7] * speculation.tokens for _ in ids]))
        for ended in (known[int(request.request_id[1:])] for request in served if request.is_finished()):
            rest = conversations[ended.conversation]
            if rest or len(queued) > sum(d[-1] is None for d in due):
                came_ps = (began_ps if limits.async_scheduling else now_ps) + round(load.think_s * 10**12)
                # A new conversation is the next one when it begins.
                due.append((came_ps, ended.index, 0, rest.popleft() if rest else None))
        due.sort(key=lambda d: d[:3])
    if loop_seconds is not None:
        loop_seconds.append(spent)
    if latencies is not None:
        for came_ps, ran_ps, first_ps, *later_ps in log.values():
            tokens_ps = [first_ps, *later_ps]
            for name, values in {
                "queue": [ran_ps - came_ps], "ttft": [first_ps - came_ps], "e2e": [tokens_ps[-1] - came_ps],
                "itl": [b - a for a, b in itertools.pairwise(tokens_ps)],
                "tpot": [(tokens_ps[-1] - first_ps) // len(later_ps)] if later_ps else [],
            }.items():  # fmt: skip
                latencies.setdefault(name, []).extend(values)
    return LoadFigures(
        peak_blocks_used=peak_blocks, peak_running=peak_running, peak_waiting=peak_waiting,
        preemptions=preemptions, steps=steps, tokens_scheduled=tokens,
    )  # fmt: skip


def _step_ps(plan: Any, known: dict[str, Any], decoding: set[str], step_time: StepTime) -> int:
    """How long the step takes by ``step_time``; ``decoding``, those that had a token in their last step, is kept."""
    decoding -= plan.preempted_req_ids or set()
    kv_tokens = pairs = 0
    for i, n in plan.num_scheduled_tokens.items():
        before = known[i].num_computed_tokens - n
        if i in decoding:
            kv_tokens += before + 1
        else:
            pairs += n * before + n * (n + 1) // 2
    decoding |= {i for i in plan.num_scheduled_tokens if not known[i].is_prefill_chunk}
    return step_time.step(plan.total_num_scheduled_tokens, kv_tokens, pairs)
