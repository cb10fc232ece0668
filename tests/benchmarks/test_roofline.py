"""The modelled bytes, judged by the parameters that transformers counts, and the roof that they give."""

from __future__ import annotations

from typing import Any

import pytest
from isotrain.albert_core.model.encoder import load_encoder
from isotrain.albert_core.model.head import ClassificationHead
from isotrain.albert_core.model.transformers_module import weights_from_module
from isotrain.benchmarks.harness.document import Interval, Peaks, Work
from isotrain.benchmarks.outcome.build import rates
from isotrain.benchmarks.outcome.gates import gate_limits
from isotrain.benchmarks.outcome.limits import best, roofline, share_of_peak
from isotrain.benchmarks.outcome.model import Rates, Roofline
from isotrain.benchmarks.work import traffic


def counted(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_parameters_are_those_of_the_modules() -> None:
    from transformers import BertConfig, BertModel

    albert = load_encoder("random:tiny")
    assert traffic.encoder_parameters(albert.weights.config) == counted(albert.module())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    bert = BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=False)
    assert traffic.encoder_parameters(weights_from_module(bert).config) == counted(bert)
    assert traffic.head_parameters(64, 24, 7) == counted(ClassificationHead(64, 24, 7))


def test_a_shared_layer_is_read_once_and_tables_by_the_row() -> None:
    config = load_encoder("random:tiny").weights.config
    one, two = (traffic.forward_bytes(config, tokens, 1, "float32", "float32") for tokens in (1, 2))
    each_token = 4 * config.embedding_size + 8 + 2 * config.num_layers * 4 * config.hidden_size
    assert two - one == each_token
    assert one - each_token - 4 * config.hidden_size == 4 * traffic.shared_parameters(config)
    assert traffic.forward_bytes(config, 1, 1, "bfloat16", "bfloat16") < one


def test_a_fused_step_of_the_head_moves_three_tensors_twice() -> None:
    parameters = traffic.head_parameters(64, 24, 7)
    assert traffic.head_bytes(64, 24, 7, 8, trained=True) == 8 * 64 * 4 + 8 * 8 + 6 * 4 * parameters


def peaks(**changes: Any) -> Peaks:
    """A device of 1 TFLOP/s and 10 GB/s, whose cache copies 20 GB/s."""
    known = {"dtype": "float32", "matmul_tflops": 1.0, "matmul_size": 512, "copy_gbps": 10.0, "step_copy_gbps": 20.0}
    known |= {"vendor_tflops": None, "vendor_gbps": None, "seconds": 1.0, "contended": False}
    return Peaks.model_validate(known | changes)


def work(flops: float, moved: float) -> Work:
    return Work(samples=1, real_tokens=1, padded_tokens=1, model_flops=flops, hardware_flops=flops, moved_bytes=moved)


def of(work: Work, seconds: float = 0.5) -> Rates:
    return Rates(**rates(Interval(median=seconds, low=seconds, high=seconds), work))


def place(work: Work, seconds: float = 0.5, **changes: Any) -> Roofline:
    return roofline(work, of(work, seconds), peaks(**changes))


def test_work_on_few_bytes_is_bound_by_products() -> None:
    assert place(work(1e11, 1e9)).document() == {
        "intensity_flop_per_byte": pytest.approx(100.0),
        "roof_tflops": pytest.approx(1.0),
        "share": pytest.approx(0.2),
        "bound": "compute",
        "bandwidth_gbps": 20.0,
    }


def test_work_on_many_bytes_is_bound_by_the_copy() -> None:
    placed = place(work(1e10, 5e9))
    assert placed.bound == "memory"
    assert placed.roof_tflops == pytest.approx(2.0 * 20.0 / 1e3)
    assert placed.share == pytest.approx(0.02 / 0.04)


def test_the_units_own_rate_lifts_the_roof_of_its_dtype_alone() -> None:
    unit = {"unit": "X", "dtype": "bfloat16", "tflops": 3.0, "threads": 1, "fed_from": "L2"}
    for dtype, roof in (("bfloat16", 3.0), ("float32", 1.0)):
        assert place(work(1e12, 1e6), 10.0, dtype=dtype, unit=unit).roof_tflops == roof
        shares = share_of_peak(of(work(1e12, 1e6), 10.0), peaks(dtype=dtype, unit=unit))
        assert shares.unit == (pytest.approx(0.1 / 3.0) if roof == 3.0 else None)


def test_the_best_peak_is_the_fastest_product_with_the_fastest_unit() -> None:
    unit = {"unit": "X", "dtype": "float32", "tflops": 3.0, "threads": 1, "fed_from": "L2"}
    known = best([peaks(matmul_tflops=2.0), peaks(unit=unit), peaks(unit=unit | {"tflops": 2.5})])
    assert (known.matmul_tflops, known.unit_tflops) == (2.0, 3.0)


def test_more_bytes_a_second_than_any_copy_moves_is_no_measurement() -> None:
    """Rule 6, for bytes: reading alone is faster than copying, though not this much."""

    def found(work: Work) -> list[str]:
        findings = gate_limits(work, 0.5, of(work), peaks(), place(work))
        return [finding.text for finding in findings if not finding.warning]

    assert found(work(1e9, 15e9)) == []
    assert found(work(1e9, 25e9)) == ["50 GB/s is more than the measured peak of 20: the fence or the peak is wrong"]
