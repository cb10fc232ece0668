"""The golden vectors of TT numerics against the emulation: every array named, counted and compared bit by bit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from isotrain.kernels.tt import formats, model, native, ops, vector
from isotrain.kernels.tt.arithmetic import Arithmetic, ttnn_block_tiles
from isotrain.kernels.tt.linear import add, linear, multiply, multiply_bf16
from isotrain.kernels.tt.unary import FUNCTIONS, _tables, unary
from support import tt_tiles as tiles

DTYPES = {"bf16": "bfloat16", "bfp8": "bfp_bf8", "bfp4": "bfp_bf4", "fp32": "float32"}
FP32 = Arithmetic(mode="exact")
BF16 = replace(FP32, fp32_dest_acc_en=False)
# Rows and columns that the results were made with, where they are more than one tile high. A part may have fewer.
TALL = {"k768_bf16_bias_default": (64, 96), "k768_bfp8_default": (64, 64)}


@dataclass(frozen=True)
class Checked:
    """One array of vectors: how many values, and how many differ."""

    name: str
    values: int
    mismatches: int


def ttnn_default(in0_dtype: str, in1_dtype: str, **settings: Any) -> Arithmetic:
    """What ttnn uses on Wormhole without a compute-kernel config (found by matching bits)."""
    if in0_dtype == "float32":
        chosen = Arithmetic(math_fidelity="hifi3", fp32_dest_acc_en=True)
    elif in0_dtype == in1_dtype == "bfp_bf8":
        chosen = Arithmetic(math_fidelity="lofi", fp32_dest_acc_en=False)
    else:
        chosen = Arithmetic(math_fidelity="hifi2", fp32_dest_acc_en=False)
    return replace(chosen, **settings)


def floats(bits: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.float32).copy())


def patterns(values: torch.Tensor) -> np.ndarray:
    return formats.bits_of(values).numpy().astype(np.uint32)


def compare(name: str, got: np.ndarray, expected: np.ndarray) -> Checked:
    assert got.shape == expected.shape, (name, got.shape, expected.shape)
    return Checked(name, expected.size, int((got != expected).sum()))


def host_formats(folder: Path) -> Iterator[Checked]:
    data = np.load(folder / "ttnn_host_formats.npz")
    for name in data.files:
        case, _, kind = name.partition("__")
        x = floats(data[f"{case}__in"])
        if kind in ("bf16", "bfp8", "bfp4"):
            yield compare(name, patterns(formats.host_convert(x, DTYPES[kind])), data[name])
        elif kind.endswith("_raw"):
            dtype = DTYPES[kind.removesuffix("_raw")]
            yield compare(name, tiles.host_bytes(x, dtype), data[name])
            back = tiles.from_bytes(data[name], dtype, *x.shape)
            yield compare(f"{name} unpacked", patterns(back), data[name.removesuffix("_raw")])


def packer(folder: Path) -> Iterator[Checked]:
    data = np.load(folder / "ttsim_elw_mad_pack.npz")
    for name in data.files:
        found = re.fullmatch(r"pack_([a-z]+)_(fp32|bf16)dst(?:_(\w+)src)?_to_(\w+)", name)
        if not found:
            continue
        case, dest, source, out = found.groups()
        x = floats(data[f"pack_{case}_{dest}"])
        fp32, expected = dest == "fp32", data[name]
        if out == "bf16":
            got = patterns(formats.device_pack(x, "bfloat16", fp32_dest=fp32)) >> 16
            yield compare(name, got.astype("<u2").view(np.uint8), expected)
            continue
        exponent, codes = formats.device_blocks(x, DTYPES[out], fp32_dest=fp32, bfp_source=source == "bfp8")
        code = codes[:, 0].numpy()
        if out == "bfp4":
            code = code[:, 0::2] | code[:, 1::2] << 4
        # Of a row's 16 exponent bytes only the first is used.
        used = np.concatenate((expected[:, :1], expected[:, 16:]), axis=1)
        yield compare(name, np.concatenate((exponent.numpy(), code), axis=1).astype(np.uint8), used)


def mvmul(folder: Path) -> Iterator[Checked]:
    data = np.load(folder / "ttsim_mvmul.npz")
    for name in data.files:
        found = re.fullmatch(r"((wh|bh)_\w+)_(fp32acc([01]))_ph(\d)", name)
        if found:
            case, chip, precision, fp32, phase = found.groups()
            got = model.mvmul(
                data[f"{case}_srca"],
                data[f"{case}_srcb"],
                data[f"{case}_{precision}_dst0"],
                int(phase),
                fp32 == "1",
                "wormhole" if chip == "wh" else "blackhole",
            )
            yield compare(name, got, data[name])


def erratum(folder: Path, engine: str) -> Iterator[Checked]:
    data = np.load(folder / "ttsim_elw_mad_pack.npz")
    for chip, arch in (("wh", "wormhole"), ("bh", "blackhole")):
        operands = srca, srcb, dst0 = [data[f"erratum_{part}"] for part in ("srca", "srcb", "dst0")]
        yield compare(f"erratum_{chip} model", model.mvmul(srca, srcb, dst0, 0, True, arch), data[f"erratum_{chip}"])
        # LoFi over 32 of K is this instruction and one on zeros, which changes no finite Dst but the erratum's.
        products = [
            native.matmul(floats(b), floats(a), "lofi", fp32_dest=True, arch=arch, dst=floats(d), engine=engine)
            for a, b, d in zip(*operands, strict=True)
        ]
        yield compare(f"erratum_{chip} {engine}", patterns(torch.stack(products)), data[f"erratum_{chip}"])


def elementwise(folder: Path) -> Iterator[Checked]:
    data = np.load(folder / "ttsim_elw_mad_pack.npz")
    for name in data.files:
        found = re.fullmatch(r"(elw_\w+?)_(fp32acc([01]))_(mul_ph|add_acc)(\d)", name)
        if not found:
            continue
        case, precision, fp32, what, number = found.groups()
        a, b, dst = data[f"{case}_a"], data[f"{case}_b"], data[f"{case}_{precision}_dst0"]
        if what == "mul_ph":
            got = model.elwmul(a, b, dst, int(number), fp32 == "1")
        else:
            got = model.elwadd(a, b, dst, fp32 == "1", accumulate=number == "1")
        yield compare(name, got, data[name])
        if what == "add_acc" and number == "0":
            # The native form starts from a Dst of 0, which is what these vectors do.
            for engine in native.engines():
                summed = native.elementwise("add", floats(a), floats(b), fp32_dest=fp32 == "1", engine=engine)
                yield compare(f"{name} {engine}", patterns(summed), data[name])


def multiply_add(folder: Path) -> Iterator[Checked]:
    """The vector unit's, where Wormhole's NaNs count as one: other bits of the operands get into them."""
    data = np.load(folder / "ttsim_elw_mad_pack.npz")
    for name in data.files:
        found = re.fullmatch(r"(mad_\w+)_(wh|bh)", name)
        if found:
            a, b, c = (data[f"{found[1]}_{part}"] for part in "abc")
            got = vector.multiply_add(a, b, c, "wormhole" if found[2] == "wh" else "blackhole")
            nan = data[name] & 0x7FFFFFFF > vector.INFINITY
            yield compare(name, got, np.where(nan, np.uint32(vector.NAN), data[name]))


def matmul(folder: Path, engine: str) -> Iterator[Checked]:
    data = np.load(folder / "ttsim_matmul.npz")
    for name in data.files:
        found = re.fullmatch(r"(\w+)_(lofi|hifi\d)_fp32acc([01])", name)
        if found:
            case, fidelity, fp32 = found.groups()
            in0, in1 = floats(data[f"{case}_A"]), floats(data[f"{case}_B"])
            got = native.matmul(in0, in1, fidelity, fp32_dest=fp32 == "1", engine=engine)
            yield compare(f"{name} {engine}", patterns(got), data[name])


@dataclass(frozen=True)
class LinearCase:
    """One call of ttnn.linear: its operands, how it computed, and what came out."""

    name: str
    in0: torch.Tensor
    in1: torch.Tensor
    bias: torch.Tensor | None
    arithmetic: Arithmetic
    out_dtype: str
    expected: torch.Tensor

    def run(self, **changes: Any) -> torch.Tensor:
        arithmetic = replace(self.arithmetic, **changes)
        return linear(self.in0, self.in1, self.bias, arithmetic, self.out_dtype).float()

    def exact(self) -> torch.Tensor:
        product = self.in0.double() @ self.in1.double()
        return product if self.bias is None else product + self.bias.double()


def linear_cases(folder: Path) -> Iterator[LinearCase]:
    data = np.load(folder / "ttnn_sim_linear.npz")
    for name in (name.removesuffix("_Y") for name in data.files if name.endswith("_Y")):
        kind = re.search(r"_(fp32|bf16xbfp8|bf16|bfp8)_", f"{name}_")
        assert kind is not None
        first, _, second = kind[1].partition("x")
        in0 = floats(data[f"{name}_A"])
        rows, columns = TALL.get(name, (32, 32))
        blocks = 0 if name.startswith("oneblk") else ttnn_block_tiles(rows, in0.shape[1], columns, "wormhole")
        settings: dict[str, object] = {"mode": "exact", "block_tiles": blocks}
        found = re.search(r"_(lofi|hifi\d)_fp32([01])(?:_l1a([01]))?", name)
        if found:
            settings |= {"math_fidelity": found[1], "fp32_dest_acc_en": found[2] == "1"}
            settings |= {"packer_l1_acc": found[3] == "1"} if found[3] else {}
        yield LinearCase(
            name,
            in0,
            floats(data[f"{name}_B"]),
            floats(data[f"{name}_bias"])[0] if f"{name}_bias" in data.files else None,
            ttnn_default(DTYPES[first], DTYPES[second or first], **settings),
            "float32" if "outfp32" in name else DTYPES[first],
            floats(data[f"{name}_Y"]),
        )


def linears(folder: Path) -> Iterator[Checked]:
    for case in linear_cases(folder):
        yield compare(case.name, patterns(case.run()), patterns(case.expected))


def operations(folder: Path) -> Iterator[Checked]:
    """The ttnn operations that an algorithm is given for."""
    data = np.load(folder / "ttnn_sim_ops.npz")

    def given(name: str, index: int = 0) -> torch.Tensor:
        return floats(data[f"{name}_in{index}"])

    def packed(values: torch.Tensor) -> torch.Tensor:
        return formats.device_pack(values, "bfp_bf8", fp32_dest=False)

    results = {
        "add_bf16": add(given("add_bf16"), given("add_bf16", 1)),
        "sub_bf16": add(given("sub_bf16"), given("sub_bf16", 1), subtract=True),
        "mul_bf16": multiply_bf16(given("mul_bf16"), given("mul_bf16", 1)),
        "add_bfp8": packed(add(given("add_bfp8"), given("add_bfp8", 1))),
        "mul_bfp8": packed(multiply(given("mul_bfp8"), given("mul_bfp8", 1), "hifi2")),
        "linear_gelu": linear(
            given("linear_gelu"),
            given("linear_gelu", 1),
            given("linear_gelu", 2)[0],
            ttnn_default("bfloat16", "bfloat16", mode="exact"),
            activation="gelu",
        ),
        "cast_bfp8_to_bf16": given("cast_bfp8_to_bf16"),
    }
    for name in data.files:
        found = re.fullmatch(r"(cast_\w+_bf16_to_(bfp[48]))_Y", name)
        if found:
            eight = found[2] == "bfp8"
            results[found[1]] = formats.device_pack(
                given(found[1]), DTYPES[found[2]], fp32_dest=False, bfp_source=not eight
            )
    for name, got in results.items():
        yield compare(name, patterns(got), data[f"{name}_Y"])


def unary_digests(folder: Path) -> Iterator[Checked]:
    """The whole tables by their SHA-256 (the finite inputs; at the others the file repeats the result of 0)."""
    data = np.load(folder / "ttnn_sim_unary_sha256.npz")
    finite = torch.isfinite(formats.from_bits(torch.arange(1 << 16) << 16)).numpy()
    for name in FUNCTIONS:
        table = (patterns(torch.from_numpy(_tables()[name])) >> 16).astype("<u2")
        table[~finite] = table[0]
        got = np.frombuffer(hashlib.sha256(table.tobytes()).digest(), np.uint8)
        same = np.array_equal(got, data[name])
        yield Checked(f"{name} (digest)", 1 << 16, 0 if same else 1 << 16)


def unary_tables(folder: Path) -> Iterator[Checked]:
    data = np.load(folder / "ttnn_sim_unary_bf16_full.npz")
    for name in FUNCTIONS:
        got = patterns(unary(name, floats(data["x"]))) >> 16
        yield compare(name, got.astype(np.uint16), data[name])
    # What ttnn's gelu is without an option.
    yield compare("gelu_def", (patterns(unary("gelu", floats(data["x"]))) >> 16).astype(np.uint16), data["gelu_def"])


CHECKS: dict[str, Callable[[Path], Iterator[Checked]]] = {
    "host formats": host_formats,
    "packer": packer,
    "MVMUL": mvmul,
    "ELWADD and ELWMUL": elementwise,
    "SFPMAD": multiply_add,
    "ttnn.linear": linears,
    "ttnn operations": operations,
}


@dataclass(frozen=True)
class Composed:
    """An operation without a given algorithm: how near our composition comes to the golden output."""

    name: str
    mode: str
    equal: float
    max_ulp: int
    rms: float
    golden_rms: float

    @property
    def row(self) -> str:
        """As tests/golden/tt/README.md has it."""
        equal = f"{100 * self.equal:.1f} %"
        return f"| {self.name} | {self.mode} | {equal} | {self.max_ulp:,} | {self.rms:.2e} | {self.golden_rms:.2e} |"


def compositions(folder: Path) -> Iterator[Composed]:
    """layer_norm, softmax, attention and the reductions against float64 and the golden outputs."""
    data = np.load(folder / "ttnn_sim_ops.npz")

    def given(name: str, index: int = 0) -> torch.Tensor:
        return floats(data[f"{name}_in{index}"])

    default = replace(BF16, math_fidelity="hifi2")
    softmaxes = {
        "softmax_hifi4_exact_fp32": ("softmax_cfg", FP32, False),
        "softmax_hifi4_exact_bf16": ("softmax_cfg", BF16, False),
        "softmax_hifi2_approx_bf16": ("softmax_cfg", default, True),
        "softmax": ("softmax", FP32, True),
        "softmax32": ("softmax32", FP32, True),
        "softmax_stable": ("softmax_stable", FP32, True),
    }
    for mode in ("exact", "fast"):
        for name, arithmetic in (
            ("layer_norm", FP32),
            ("layer_norm_fp32acc", FP32),
            ("layer_norm_w256_bf16acc", BF16),
        ):
            x, weight, bias = given(name), given(name, 1)[0], given(name, 2)[0]
            got = ops.layer_norm(x, weight, bias, 1e-5, replace(arithmetic, mode=mode))
            judge = torch.nn.functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), eps=1e-5)
            yield _composed(name, mode, got, floats(data[f"{name}_Y"]), judge)
        for name, (source, arithmetic, approximate) in softmaxes.items():
            x = given(source)
            got = ops.softmax(x, replace(arithmetic, mode=mode), approximate)
            yield _composed(name, mode, got, floats(data[f"{name}_Y"]), torch.softmax(x.double(), dim=-1))
        query, key, value = (given("sdpa", index) for index in range(3))
        got = ops.attention(query, key, value, replace(default, mode=mode), approximate=True)
        judge = torch.nn.functional.scaled_dot_product_attention(query.double(), key.double(), value.double())
        yield _composed("sdpa", mode, got, floats(data["sdpa_Y"]), judge)
    x = given("sum_w")
    yield _composed("sum_w", "exact", _row_sum(x, 1.0), floats(data["sum_w_Y"])[: len(x)], x.double().sum(-1))
    x = given("mean_w")
    # Unlike anywhere else, ttnn truncates this scale to bfloat16.
    scale = float(formats.truncate(torch.tensor([1.0 / x.shape[1]]), 7))
    yield _composed("mean_w", "exact", _row_sum(x, scale), floats(data["mean_w_Y"])[: len(x)], x.double().mean(-1))


def _row_sum(x: torch.Tensor, scale: float) -> torch.Tensor:
    """``ttnn.sum`` over the last dimension of bfloat16 values [rows, width], times `scale`: [rows]."""
    return formats.device_pack(ops.reduce_rows(x, scale, "hifi3", fp32_dest=True)[:, 0], "bfloat16", fp32_dest=True)


def relative_rms(got: torch.Tensor, judge: torch.Tensor) -> float:
    return float((got.double() - judge).square().mean().sqrt() / judge.square().mean().sqrt())


def _composed(name: str, mode: str, got: torch.Tensor, golden: torch.Tensor, judge: torch.Tensor) -> Composed:
    ulp = (_ordered(got) - _ordered(golden)).abs().max()
    return Composed(
        name,
        mode,
        float((got == golden).float().mean()),
        int(ulp),
        relative_rms(got, judge),
        relative_rms(golden, judge),
    )


def _ordered(values: torch.Tensor) -> torch.Tensor:
    """bfloat16 values as integers whose difference counts the values between them."""
    half = formats.bits_of(values) >> 16
    return torch.where(half >= 0x8000, 0x8000 - half, half)
