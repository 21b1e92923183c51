"""A 70B with 64, 8 and 1 KV heads on the same device: what grouped- and multi-query attention save, term by term."""

from __future__ import annotations

from typing import Any

from harness import catalog
from harness.learn.finding import Column, Finding
from harness.ledger import Term
from harness.predict import predict
from harness.scenario import Engine, Gpu, Scenario, Weights
from harness.units import human

MODEL, LENGTH = "meta-llama/Llama-3.1-70B-Instruct", 8192
KINDS = {64: "multi-head", 8: "grouped-query", 1: "multi-query"}


def run(seed: int = 0) -> Finding:
    """Predict the same server three times; nothing here is drawn, so ``seed`` changes nothing."""
    rows: list[tuple[Any, ...]] = []
    for heads, kind in KINDS.items():
        account = predict(Scenario(
            name="kv-heads", model={**catalog.model_config(MODEL), "num_key_value_heads": heads},
            weights=Weights(format="awq-int4-g128"), gpu=Gpu(name="h100-sxm-80gb"),
            engine=Engine(vllm="0.32", max_model_len=LENGTH, gpu_memory_utilization=0.92),
        ))  # fmt: skip
        kv = account.kv
        pool = account.ledger.bytes_of(Term.KV_AVAILABLE) or 0
        rows.append((kind, heads, kv.bytes_per_token, account.ledger.bytes_of(Term.WEIGHTS), pool, kv.usable_tokens,
                     round(kv.max_concurrency or 0, 2)))  # fmt: skip
    full, grouped, one = rows
    return Finding(
        f"a server of {MODEL} in 4 bits on one h100-sxm-80gb, vLLM 0.32, max_model_len {LENGTH:,}: its config with "
        "64, 8 and 1 KV heads",
        (
            Column("attention", "attention"),
            Column("kv_heads", "KV heads"),
            Column("kv_bytes_per_token", "KV for a token", "bytes"),
            Column("weight_bytes", "weights", "bytes"),
            Column("pool_bytes", "KV pool", "bytes"),
            Column("pool_tokens", "tokens in it", "{:,}"),
            Column("requests", "requests", "{:.2f}"),
        ),
        tuple(rows),
        (
            f"A token writes one key and one value for each KV head in each layer: {human(full[2])} with {full[1]} "
            f"heads, {human(grouped[2])} with {grouped[1]}, {human(one[2])} with one. Queries keep all 64 heads.",
            f"It shows in the KV pool: {full[5]:,} tokens become {grouped[5]:,} and {one[5]:,}. The key and value "
            f"matrices shrink as well, by {human(full[3] - grouped[3])} from 64 heads to 8, which is little beside "
            "the cache's factor of 8.",
            "A rank holds at least one KV head: with one, tensor parallelism copies the cache instead of dividing "
            "it, which is a reason for groups.",
        ),
        (
            "Shazeer 2019, Fast Transformer Decoding (MQA): https://arxiv.org/abs/1911.02150",
            "Ainslie et al. 2023, GQA: https://arxiv.org/abs/2305.13245",
        ),
    )  # fmt: skip
