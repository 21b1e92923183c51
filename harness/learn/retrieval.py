"""The same questions answered by a model that reads passages and by one that was fine-tuned: memory when it serves.

Retrieval is paid in KV cache, once for each request at a time; fine-tuning in weights, once for all requests (nothing
where an adapter is merged, its numbers for each adapter kept apart), and before that in a training step.
"""

from __future__ import annotations

from harness import catalog
from harness.architecture import from_config
from harness.learn.finding import Column, Finding
from harness.ledger import Term
from harness.predict import predict
from harness.predict.finetune.parameters import adapters
from harness.predict.finetune.states import size
from harness.scenario import Engine, Gpu, Lora, Scenario, Training, Weights
from harness.units import human

MODEL, GPU, RANK, SLOTS = "meta-llama/Llama-3.1-8B-Instruct", "l4-24gb", 16, 8
QUESTION, PASSAGES, ANSWER = 256, 3072, 256


def run(seed: int = 0) -> Finding:
    """Predict the server once and share out its pool; nothing here is drawn, so ``seed`` changes nothing."""
    account = predict(Scenario(
        name="rag-or-finetune", model=MODEL, weights=Weights(format="gptq-int4-g128"), gpu=Gpu(name=GPU),
        engine=Engine(vllm="0.32", max_model_len=8192),
    ))  # fmt: skip
    each = size(tuple(adapters(from_config(catalog.model_config(MODEL)), Lora(rank=RANK))), 2)
    kv = account.kv
    assert kv.bytes_per_token and kv.bytes_per_block and kv.block_size and kv.usable_blocks
    rows = []
    for way, tokens, weights in (
        ("neither", QUESTION + ANSWER, 0),
        ("retrieval", QUESTION + PASSAGES + ANSWER, 0),
        ("fine-tuned, adapter merged", QUESTION + ANSWER, 0),
        ("fine-tuned, one adapter apart", QUESTION + ANSWER, each),
        (f"fine-tuned, {SLOTS} adapters apart", QUESTION + ANSWER, SLOTS * each),
    ):
        blocks = -(-tokens // kv.block_size)
        room = kv.usable_blocks - -(-weights // kv.bytes_per_block)
        rows.append((way, tokens, tokens * kv.bytes_per_token, weights, room // blocks))
    _, retrieval, merged, apart, many = rows
    train = predict(Scenario(
        name="train", kind="finetune", model=MODEL, gpu=Gpu(name=GPU),
        training=Training(method="qlora", lora=Lora(rank=RANK), gradient_checkpointing=True),
    ))  # fmt: skip
    peak = max(e.bytes or 0 for e in train.ledger if e.term == Term.TOTAL)
    return Finding(
        f"a server of {MODEL} in 4 bits on one {GPU}, vLLM 0.32; {QUESTION} tokens of question, {PASSAGES:,} of "
        f"passages, {ANSWER} of answer; adapters of rank {RANK} on every linear layer in 16 bits",
        (
            Column("way", "way"),
            Column("tokens", "tokens", "{:,}"),
            Column("kv_bytes", "KV of a request", "bytes"),
            Column("weight_bytes", "more weights", "bytes"),
            Column("requests", "at once", "{:,}"),
        ),
        tuple(rows),
        (
            f"Retrieval costs KV cache for every request under way: {human(PASSAGES * kv.bytes_per_token)} for "
            f"{PASSAGES:,} tokens of passages, so that {retrieval[4]} requests fit where {merged[4]} would without "
            "them.",
            f"Fine-tuning costs weights once: nothing when the adapter is merged, {human(each)} for each adapter "
            f"kept apart, so {apart[4]} requests fit beside one and {many[4]} beside {SLOTS}. Its price comes "
            f"before: a QLoRA step of 1 x 2,048 tokens takes {human(peak)} on this GPU, with checkpointing.",
            "Memory is not the only difference: passages can be changed without training, and name their source.",
        ),
        (
            "Lewis et al. 2020, Retrieval-Augmented Generation: https://arxiv.org/abs/2005.11401",
            "Hu et al. 2021, LoRA: https://arxiv.org/abs/2106.09685",
        ),
    )  # fmt: skip
