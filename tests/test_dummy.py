"""The configs of random weights say the format that was asked for: read by our reader, and by vLLM's own classes."""

from __future__ import annotations

import pytest

from harness import catalog
from harness.architecture import from_config
from harness.engines import dummy
from harness.errors import MachineError
from harness.predict.quantization import config_quantization

LLAMA = catalog.model_config("meta-llama/Llama-3.1-8B-Instruct")
FORMATS = (
    "fp8", "fp8-block", "int8", "int4-g128", "int4-g64", "awq-int4-g128", "awq-int4-g64", "gptq-int4-g128",
    "gptq-int8-g64",
)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_the_config_states_the_format(name: str) -> None:
    wanted = catalog.weight_format(name)
    made = dummy.config(LLAMA, catalog.weight_format("bf16"), wanted)
    read = config_quantization(made, from_config(made)).main
    same = (read.bits, read.scale_bits, read.scale_per, read.group_size, read.zero_point_bits, read.input_bits)
    assert same == (wanted.bits, wanted.scale_bits, wanted.scale_per, wanted.group_size, wanted.zero_point_bits,
                    wanted.input_bits)  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_vllm_reads_the_config(name: str) -> None:
    quantization = pytest.importorskip("vllm.model_executor.layers.quantization")
    stated = dummy.quantization(catalog.weight_format(name))
    read = quantization.get_quantization_config(stated["quant_method"]).from_config(stated)
    assert stated["quant_method"] in read.get_name()
    wanted = catalog.weight_format(name)
    if stated["quant_method"] in ("awq", "gptq"):
        assert (read.weight_bits, read.group_size) == (wanted.bits, wanted.group_size)


def test_a_plain_format_drops_what_the_config_states() -> None:
    quantized = {**LLAMA, "quantization_config": dummy.quantization(catalog.weight_format("awq-int4-g128"))}
    awq, bf16 = catalog.weight_format("awq-int4-g128"), catalog.weight_format("bf16")
    assert "quantization_config" not in dummy.config(quantized, awq, bf16)
    assert dummy.config(quantized, awq, awq) is quantized


def test_what_no_plain_config_says_is_refused_by_name() -> None:
    with pytest.raises(MachineError, match="nvfp4 is not to be had from a plain config"):
        dummy.quantization(catalog.weight_format("nvfp4"))
