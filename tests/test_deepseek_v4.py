"""DeepSeek V4 against vLLM's own class for NVIDIA GPUs (0.32), on the meta device: tensors, caches, blocks, refusals.

This computer's vLLM would take the class of its CPU backend, whose caches differ; so the other is asked by name, with
the kernels' choices taken out that no shape depends on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.architecture.folder import Stored
from harness.catalog import engine_defaults
from harness.errors import UsageError
from harness.predict import kv_cache, predict
from harness.predict.activations import activation_peak
from harness.predict.admission import not_enough
from harness.predict.compressed_profile import index_buffers, profiled
from harness.predict.kv_packed import packed
from harness.predict.quantization.stored import formats_of
from harness.predict.settings import settings
from harness.predict.weights import tensors
from harness.scenario import parse_scenario
from harness.units import GIB, MIB
from tests.vllm_oracle import Vllm, as_one_of, ours, vllm_on_meta

FLASH, PRO = "deepseek-ai/DeepSeek-V4-Flash", "deepseek-ai/DeepSeek-V4-Pro"
BLOCK = 256
# What decides no memory, as in the published config.json; vLLM asks for it.
BESIDE = {
    "rope_theta": 10000, "compress_rope_theta": 160000, "rms_norm_eps": 1e-6, "swiglu_limit": 10.0, "hc_eps": 1e-6,
    "hc_sinkhorn_iters": 20,
}  # fmt: skip
# What a format keeps once for a matrix or for an expert is not counted (docs/memory-model.md).
SMALL_CHANGE = ("weight_scale_2", "input_scale")


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """vLLM's own planner and model classes, those for NVIDIA GPUs."""
    folder = tmp_path_factory.mktemp("v4")
    with vllm_on_meta(folder, catalog.model_config("qwen3-30b-a3b")) as found, pytest.MonkeyPatch.context() as patched:
        import torch
        from vllm.model_executor.layers.quantization import modelopt
        from vllm.models.deepseek_v4.nvidia import flashmla, model

        patched.setattr(flashmla, "compute_fp8_einsum_recipe", lambda: (None, False))
        patched.setattr(torch.cuda, "Event", MagicMock)
        for choice in ("select_nvfp4_moe_backend", "select_fp8_moe_backend"):
            if hasattr(modelopt, choice):
                patched.setattr(modelopt, choice, lambda *_, **__: (MagicMock(), MagicMock()))
        assert model.DeepseekV4ForCausalLM.__module__.endswith("nvidia.model")
        yield found


def built(vllm: Vllm, config: dict[str, Any], tp: int = 1, mtp: bool = False, **arguments: Any) -> tuple[Any, Any]:
    """(what vLLM makes on one of ``tp`` ranks, its configuration); ``mtp``: of the MTP layers, behind the model's."""
    import torch
    from vllm.config import set_current_vllm_config
    from vllm.models.deepseek_v4.nvidia.model import DeepseekV4ForCausalLM
    from vllm.models.deepseek_v4.nvidia.mtp import DeepSeekV4MTP

    if mtp:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": 1}
    quantization = {**config["quantization_config"], "activation_scheme": "dynamic", "scale_fmt": "ue8m0"}
    config = {**config, **BESIDE, "quantization_config": quantization}
    own = vllm.configured(config, block_size=BLOCK, **arguments)
    with as_one_of(tp), set_current_vllm_config(own), torch.device("meta"):
        torch.set_default_dtype(own.model_config.dtype)
        try:
            made = DeepseekV4ForCausalLM(vllm_config=own)
            return (DeepSeekV4MTP(vllm_config=own) if mtp else made), own
        finally:
            torch.set_default_dtype(torch.float32)


def specs_of(own: Any) -> dict[str, Any]:
    """The KV spec of each cache that is made, as vLLM registered it."""
    layers = own.compilation_config.static_forward_context
    found = {n: m.get_kv_cache_spec(own) for n, m in layers.items() if hasattr(m, "get_kv_cache_spec")}
    return {name: spec for name, spec in found.items() if spec is not None}


def resolved(
    model: str | dict[str, Any], engine: str = "", gpus: int = 8, gpu: str = "b200", rest: str = "",
    version: str = "0.32",
) -> Any:  # fmt: skip
    device, running = f"gpu: {{name: {gpu}, count: {gpus}}}", f'engine: {{vllm: "{version}"{engine}}}'
    scenario = parse_scenario(f"name: x\nmodel: {json.dumps(model)}\n{device}\n{running}{rest}")
    architecture = from_config(scenario.config())
    return architecture, settings(scenario, architecture), scenario


def shares(tp: int, pp: int = 1, more: str = "") -> str:
    return f", tensor_parallel_size: {tp}, pipeline_parallel_size: {pp}{more}"


def drafted(chosen: Any) -> list[Any]:
    """The tensors of the MTP layers."""
    return list(tensors(chosen.draft.architecture, replace(chosen, quantization=chosen.draft.quantization), 0))


# -- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "tp"), [(FLASH, 1), (FLASH, 2), (FLASH, 8), (PRO, 1), (PRO, 4), (PRO, 16)]
)  # fmt: skip
def test_a_rank_holds_what_vllms_own_class_makes(vllm: Vllm, model: str, tp: int):
    architecture, chosen, _ = resolved(model, shares(tp), tp)
    made, _ = built(vllm, catalog.model_config(model), tp)
    theirs = sum(p.numel() * p.element_size() for p in made.parameters())
    ours = sum(t.bytes * t.count for t in tensors(architecture, chosen, 0) if "rotary" not in t.name)
    assert ours == theirs
    rotary = {id(b): b for n, b in made.named_buffers() if "cos_sin_cache" in n}
    assert sorted(tuple(b.shape) for b in rotary.values()) == sorted(architecture.rotary_shapes)
    assert all(b.element_size() == 4 for b in rotary.values()) and architecture.rotary_float32


def test_shared_experts_are_whole_where_ranks_divide_the_tokens(vllm: Vllm):
    from vllm.config import set_current_vllm_config
    from vllm.models.deepseek_v4.nvidia import model

    together = ", enable_expert_parallel: true, data_parallel_size: 2"
    made, own = built(vllm, catalog.model_config(FLASH))
    theirs = {}
    for engines in (1, 2):
        parallel = own.parallel_config
        parallel.tensor_parallel_size, parallel.data_parallel_size, parallel.enable_expert_parallel = 2, engines, True
        with as_one_of(2), set_current_vllm_config(own):
            whole = model._use_sequence_parallel(own)
            mlp = model.DeepseekV4MLP(256, 256, "silu", is_sequence_parallel=whole)
        theirs[engines] = (whole, mlp.gate_up_proj.weight.shape[0])
    assert theirs == {1: (False, 256), 2: (True, 512)}
    _, apart, _ = resolved(FLASH, shares(2, more=", enable_expert_parallel: true"), 2)
    architecture, chosen, _ = resolved(FLASH, shares(2, more=together), 4)
    held = {
        n: sum(t.bytes * t.count for t in tensors(architecture, how, 0) if t.name.startswith("shared_experts.down"))
        for n, how in ((1, apart), (2, chosen))
    }  # fmt: skip
    full = [p for n, p in made.named_parameters() if "shared_experts.down_proj" in n]
    assert held[2] == sum(p.numel() * p.element_size() for p in full) == 2 * held[1]


@pytest.mark.parametrize("model", ["nvidia/DeepSeek-V4-Flash-NVFP4", FLASH])
def test_experts_are_stored_as_the_checkpoint_says(vllm: Vllm, model: str):
    config = {**catalog.model_config(model), **({"expert_dtype": "fp8"} if model == FLASH else {})}
    architecture, chosen, _ = resolved(config, shares(1), 1)
    made, _ = built(vllm, config)
    theirs = sum(p.numel() * p.element_size() for n, p in made.named_parameters() if not n.endswith(SMALL_CHANGE))
    assert sum(t.bytes * t.count for t in tensors(architecture, chosen, 0) if "rotary" not in t.name) == theirs
    assert chosen.quantization.name == ("fp8-block" if model == FLASH else "nvfp4 + fp8-block-e8m0")


@pytest.mark.parametrize(
    ("model", "parameters", "active", "gigabytes"), [(FLASH, 284e9, 13e9, 160), (PRO, 1.6e12, 49e9, 865)]
)
def test_counts_and_files_are_as_published(model: str, parameters: float, active: float, gigabytes: float):
    """The model card says 284 B (13 B active) and 1.6 T (49 B); the files, MTP layer included, are of these sizes:
    https://framia.pro/page/en-US/news/deepseek-v4-parameters."""
    architecture, chosen, _ = resolved(model, shares(1, more=MTP), 1)
    assert architecture.parameters == pytest.approx(parameters, rel=0.02)
    assert architecture.active_parameters == pytest.approx(active, rel=0.07)
    held = (*tensors(architecture, chosen, 0), *drafted(chosen))
    assert sum(t.bytes * t.count for t in held if "rotary" not in t.name) == pytest.approx(gigabytes * 1e9, rel=0.01)


@pytest.mark.parametrize("tp", [1, 8])
@pytest.mark.parametrize("model", [FLASH, PRO])
def test_the_mtp_layer_holds_what_vllms_own_class_makes(vllm: Vllm, model: str, tp: int):
    _, chosen, _ = resolved(model, shares(tp, more=MTP), tp)
    made, _ = built(vllm, catalog.model_config(model), tp, mtp=True)
    copies = ("embed_tokens.weight", "shared_head.head.weight")  # dropped for the decoder's
    theirs = sum(p.numel() * p.element_size() for n, p in made.named_parameters() if not n.endswith(copies))
    held = drafted(chosen)
    assert sum(t.bytes * t.count for t in held if "rotary" not in t.name) == theirs
    # Pro's decoder has no layer with a window alone, whose rotary cache could be shared.
    assert sum("rotary" in t.name for t in held) == (model == PRO)


# -- the pool --------------------------------------------------------------------------------------

POOLS = (1, 3 * MIB, 2 * GIB, 9 * GIB + 12345, 60 * GIB)
MTP = ", speculative_config: {method: mtp, num_speculative_tokens: 1}"


@pytest.mark.parametrize(("kv_dtype", "tp", "mtp"), [("auto", 1, False), ("fp8", 2, False), ("auto", 8, True)])
@pytest.mark.parametrize("model", [FLASH, PRO])
def test_the_pool_is_planned_as_in_vllm(vllm: Vllm, model: str, kv_dtype: str, tp: int, mtp: bool):
    _, own = built(vllm, catalog.model_config(model), tp, mtp, kv_cache_dtype=kv_dtype)
    specs, answers = specs_of(own), []
    for length in (2048, 131072, 1048576):
        more = f", max_model_len: {length}, kv_cache_dtype: {kv_dtype}{MTP if mtp else ''}"
        architecture, chosen, _ = resolved(model, shares(tp, more=more), tp)
        for available in POOLS:
            expected = vllm.plan([specs], [available], length, in_flight=chosen.in_flight_tokens, layout="BLHNC")
            assert ours(architecture, chosen, available) == expected
            answers.append(expected)
    assert {type(a) for a in answers} == {str, tuple}
    assert any("estimated maximum model length is" in a for a in answers if isinstance(a, str))


@pytest.mark.parametrize(
    "ratios", [[0, 4, 128, 4, 128, 0], [4, 4, 128], [0, 4, 128, 128, 4, 4, 0, 128, 0, 0, 0], [4, 4, 4], [0, 1, 0]]
)  # fmt: skip
def test_other_layouts_are_grouped_as_in_vllm(vllm: Vllm, ratios: list[int]):
    config = {**catalog.model_config(FLASH), "num_hidden_layers": len(ratios), "compress_ratios": [*ratios, 0]}
    _, own = built(vllm, config)
    for length, available in ((4096, GIB // 4), (65536, 2 * GIB + 12345), (1048576, GIB)):
        architecture, chosen, _ = resolved(config, shares(1, more=f", max_model_len: {length}"), 1)
        expected = vllm.plan([specs_of(own)], [available], length, in_flight=chosen.in_flight_tokens, layout="BLHNC")
        assert ours(architecture, chosen, available) == expected


@pytest.mark.parametrize("model", [FLASH, PRO])
def test_the_stages_of_a_pipeline_share_the_groups(vllm: Vllm, model: str):
    architecture, chosen, _ = resolved(model, shares(1, 4, ", max_model_len: 65536"), 4)
    _, own = built(vllm, catalog.model_config(model))
    specs = specs_of(own)
    stages = [
        {n: s for n, s in specs.items() if int(n.split(".")[2]) in architecture.stage(i, chosen.stages)}
        for i in range(4)
    ]  # fmt: skip
    expected = vllm.plan(stages, [40 * GIB] * 4, 65536, in_flight=chosen.in_flight_tokens, layout="BLHNC")
    counts = [ours(architecture, chosen, 40 * GIB, stage)[0] for stage in range(4)]
    assert min(counts) == expected[0] and len(set(counts)) > 1
    assert kv_cache.pool(architecture, chosen, expected[0]).max_concurrency == expected[2]


def test_the_block_of_flash_by_hand():
    """docs/memory-model.md: 62 pages of rows are the widest group."""
    architecture, chosen, _ = resolved(FLASH, shares(8, more=", max_model_len: 131072"))
    rows, keys, deep = 64 * 584, 64 * 132, 2 * 584  # of 256 tokens at 1:4, their indexer, at 1:128
    pages = [-(-n // 576) * 576 for n in (rows, keys, deep)]
    assert pages == [37440, 8640, 1728]
    block = 21 * (pages[0] + pages[1]) + 20 * pages[2]
    assert kv_cache.bytes_per_block(architecture, chosen) == block == 1_002_240
    in_flight = 2 * 16384  # two batches at once
    assert chosen.in_flight_tokens == in_flight
    windows = [(127, 64), (127, 64), (7, 4), (127, 8)]  # window - 1, block: two groups of windows, two of compressors
    blocks = 131072 // 256 + sum(-(-(before + in_flight) // size) + 1 for before, size in windows)
    assert kv_cache.request_blocks(architecture, chosen, 131072) == blocks == 13_850


@pytest.mark.parametrize(
    ("vllm", "block", "charged"),
    [
        ("0.22", 22 * (37440 + 8640 + 1728), 22 * (37440 + 8640 + 1728)),
        ("0.23", 22 * 37440 + 21 * 8640 + 20 * 1728, 22 * (37440 + 8640 + 1728)),
        ("0.27", 1_002_240, 22 * (37440 + 8640 + 1728)),
        ("0.29", 1_002_240, 1_002_240),
    ],
)
def test_older_releases_packed_with_more_room(vllm: str, block: int, charged: int):
    """Held against the functions of the 0.22.0, 0.23.0 and 0.25.0 to 0.31.0 wheels once, 64 cases each: equal."""
    architecture, chosen, _ = resolved(FLASH, shares(8))
    chosen = replace(chosen, defaults=engine_defaults(vllm))
    assert kv_cache.bytes_per_block(architecture, chosen) == block
    assert kv_cache.charged_per_block(architecture, chosen) == charged
    counted = 1000 / kv_cache.pool(architecture, chosen, 1000).max_concurrency
    asked = kv_cache.request_blocks(architecture, chosen, chosen.max_model_len)
    assert (counted < asked) == (vllm in ("0.22", "0.23"))
    windows, chosen, _ = resolved({**catalog.model_config(FLASH), "compress_ratios": [0] * 44}, shares(8))
    chosen = replace(chosen, defaults=engine_defaults(vllm))  # nothing but windows: pages of one size
    assert kv_cache.bytes_per_block(windows, chosen) == kv_cache.charged_per_block(windows, chosen) == 43 * 37440


def test_a_public_refusal_comes_out_as_printed():
    """https://github.com/vllm-project/vllm/issues/44376: vLLM 0.22 on two GH200s, LLM(), 5.44 GiB left."""
    engine = ", entrypoint: llm, enable_expert_parallel: true, max_model_len: 30000, gpu_memory_utilization: 0.95"
    architecture, chosen, _ = resolved(FLASH, shares(2, more=engine), 2, "gh200-96gb", version="0.22")
    charged = kv_cache.charged_per_block(architecture, chosen)
    needed = kv_cache.request_blocks(architecture, chosen, 30000) * charged
    said = [  # by all that prints as 5.44 GiB, a block apart
        not_enough(30000, needed, check, kv_cache.longest_that_fits(architecture, chosen, check, charged))
        for check in range(round(5.435 * GIB) + 1, round(5.445 * GIB), charged)
    ]
    wanted = "(30000), (6.66 GiB KV cache is needed, which is larger than the available KV cache memory (5.44 GiB). "
    assert all(wanted in words for words in said)
    assert 0 < sum("the estimated maximum model length is 13528." in words for words in said) < len(said)


def test_groups_of_repeats():
    """A bucket of one size is cut down towards the longest pattern of several; a bucket that is no pattern stays."""
    window, rows = {10: list(range(43))}, {10: [2, 4], 3: [2, 4], 1: [3]}
    state, deep = {3: list(range(21)), 9: list(range(21))}, {9: list(range(20))}
    found = packed([window, rows, state, deep])
    assert [len(groups) for groups in found] == [2, 1, 1, 1]
    assert [len(group) for group in found[0]] == [22, 21]
    assert Counter(page for _, page in found[1][0]) == {10: 2, 3: 2, 1: 1}
    assert packed([{10: [0, 1]}, {5: [0, 1, 2]}]) == [[[(0, 10), (1, 10)]], [[(0, 5), (1, 5), (2, 5)]]]


# -- the profile -----------------------------------------------------------------------------------


def test_the_profile_of_flash_by_hand():
    """docs/memory-model.md. No public run of 0.32 states its terms: this holds the arithmetic, not the truth."""
    engine = shares(2, more=", max_model_len: 131072, max_num_batched_tokens: 8192")
    tokens, mib = 8192, 2**20
    architecture, chosen, _ = resolved(FLASH, engine, 2, "h200")
    rows = architecture.compressed
    kept, layer = profiled(architecture, rows, chosen, catalog.gpu("h200"))
    gather = 4 * (32768 + 128 + tokens) * 512 * 2 + tokens * 4 * 640
    keys, experts = 132 * 1_310_720, tokens * 6 * (4096 + 4096) * 2
    assert (kept.low, kept.bytes) == (max(gather, keys), experts) == (189_267_968, 768 * mib)
    a_token = 2 * 4 * 4096 * 2 + 2 * 4096 * 2 + 2 * 64 * 512 * 2 + 2 * 1536 * 2 + 10_240 + 64 * 128
    assert layer.bytes == tokens * a_token + 512 * mib + 2 * tokens * 512 * 4 == 2400 * mib
    assert layer.low == layer.bytes - 512 * mib and layer.high == layer.bytes + 256 * mib
    peak = activation_peak(architecture, chosen, catalog.gpu("h200"))
    assert peak.low < peak.bytes < peak.high and peak.bytes == kept.bytes + layer.bytes + 52 * mib
    assert profiled(architecture, rows, chosen, catalog.gpu("b200"))[0].bytes == gather
    assert index_buffers(rows, chosen) == 2 * tokens * 1024 * 4 == 64 * mib
    assert index_buffers(rows, replace(chosen, max_model_len=1048576)) == 512 * mib


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "gpu", "words"),
    [
        (", kv_cache_dtype: bfloat16", "h100", "only supports fp8 kv-cache, got bfloat16"),
        (", kv_cache_dtype: nvfp4", "b200", "only supports fp8 kv-cache, got nvfp4"),
        (", block_size: 64", "h100", "engine.block_size: DeepseekV4ForCausalLM takes 256 alone"),
        ("", "a100-sxm-80gb", "its attention kernels need compute capability 9, 10 or 12"),
        (", decode_context_parallel_size: 8", "h100", "DCP not support sliding window"),
        (", enable_lora: true", "h100", "the slots of DeepseekV4ForCausalLM are not modelled"),
    ],
)
def test_engines_that_cannot_have_it(engine: str, gpu: str, words: str):
    with pytest.raises(UsageError, match=words):
        resolved(FLASH, engine, 8, gpu)


def test_other_versions_and_devices():
    for vllm, words in (("0.21", "modelled from vLLM 0.22 on, not for 0.21"), ("0.33", "")):
        scenario = parse_scenario(f'name: x\nmodel: {FLASH}\ngpu: {{name: h200, count: 8}}\nengine: {{vllm: "{vllm}"}}')
        if words:
            with pytest.raises(UsageError, match=words):
                settings(scenario)
        else:
            assert settings(scenario).block_size == BLOCK
    with pytest.raises(UsageError, match="what vLLM's CPU backend keeps for DeepseekV4ForCausalLM is not modelled"):
        settings(parse_scenario(f"name: x\nmodel: {FLASH}\ndevice: cpu\nengine: {{kv_cache_memory_bytes: 1 GiB}}"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compress_ratios": [0, 4]}, "compress_ratios: expected a number for each of 43 layers"),
        ({"compress_ratios": [2] * 43}, "compress_ratios: expected 0, 1, 4 or 128, got 2"),
        ({"compress_ratios": None}, "compress_ratios: expected a number for each"),
        ({"compress_ratios": [128] * 43}, "compress_ratios: 128 without 4 in other layers"),
        ({"head_dim": 256}, "head_dim: vLLM's kernels have 512 alone, got 256"),
        ({"vision_n_layers": 12}, "vision_n_layers: DeepSeek V4 with a vision tower"),
        ({"sliding_window": None}, "sliding_window: missing"),
        ({"o_groups": 0}, "o_groups: expected 1 to"),
        ({"hc_mult": 10**9}, "hc_mult: expected 1 to 1,024"),
    ],
)
def test_configs_that_are_not_one(changes: dict[str, Any], words: str):
    with pytest.raises(UsageError, match=words):
        from_config({**catalog.model_config(FLASH), **changes})


def test_mtp_beside_other_experts_is_refused():
    """The checkpoint leaves its MTP layer in mxfp4, and vLLM would make that one's experts in nvfp4 as well."""
    with pytest.raises(UsageError, match="MTP layers of DeepseekV4ForCausalLM beside NVFP4 experts are not modelled"):
        resolved("nvidia/DeepSeek-V4-Pro-NVFP4", MTP)


def test_a_copy_that_does_not_say_its_experts_is_refused():
    with pytest.raises(UsageError, match=r"in what its experts are stored \(expert_dtype\)"):
        catalog.model_config("sgl-project/DeepSeek-V4-Pro-FP8")


def test_headers_tell_the_formats_of_a_local_checkpoint():
    """The layout of the published files: experts two weights a byte with an exponent for 32, blocks with exponents."""
    architecture = from_config(catalog.model_config(FLASH))
    held = {"head.weight": Stored("BF16", (129280, 4096))}
    for layer in range(43):
        for name, rows, columns in (("attn.wq_a", 1024, 4096), ("attn.wkv", 512, 4096), ("attn.wo_b", 4096, 8192)):
            held[f"layers.{layer}.{name}.weight"] = Stored("F8_E4M3", (rows, columns))
            held[f"layers.{layer}.{name}.scale"] = Stored("F8_E8M0", (rows // 128, columns // 128))
        held[f"layers.{layer}.ffn.experts.0.w1.weight"] = Stored("I8", (2048, 2048))
        held[f"layers.{layer}.ffn.experts.0.w1.scale"] = Stored("F8_E8M0", (2048, 128))
    found = {part: [f.name for f in formats if f] for part, formats in formats_of(held, architecture).items()}
    assert found == {
        "wqa_wkv.weight": ["fp8-block-e8m0"], "wo_b.weight": ["fp8-block-e8m0"], "experts.w13": ["mxfp4-pack"]
    }  # fmt: skip


def test_ranks_that_cannot_share_its_groups():
    with pytest.raises(UsageError, match="o_groups: 16 ranks can't share 8 groups evenly"):
        from_config(catalog.model_config(FLASH)).check_split(16)
    from_config(catalog.model_config(PRO)).check_split(16)


def test_a_load_holds_far_more_than_the_log_line_says():
    """Windows and compressors are charged for all that may be in flight, which few requests have at once. The steps
    are vLLM's own: tests/test_stepwise.py."""
    load = "\nload: {shape: closed, users: 40, requests: 40, prompt_tokens: 16000, output_tokens: 99, seed: 1}"
    account = predict(resolved(FLASH, ", max_model_len: 32768", 4, "h200", load)[2])
    assert [account.rung(name).holds for name in ("LOADS", "ADMITS", "STARTS", "HOLDS")] == [True] * 4
    assert account.load.peak_running > 2 * account.kv.max_concurrency
    with_drafts = predict(resolved(FLASH, f", max_model_len: 32768{MTP}", 4, "h200", load)[2])
    assert with_drafts.rung("HOLDS").holds is None
