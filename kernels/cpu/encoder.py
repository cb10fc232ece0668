"""The frozen encoder in native code: bfloat16 or int8 products on AMX or AVX-512, everything else in float32.

One layer's weights are packed once into the order in which the matrix unit reads them. Each thread takes blocks of
whole sequences through all layers, so their activations stay in its own cache and no thread waits for another. There
is no padding, and no row's arithmetic depends on its neighbours: a sequence's features have the same bits in every
batch, order and number of threads.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ... import UserError
from ..packed.batch import PackedBatch, PaddedBatch
from ..packed.eight_bit import FORMATS, WIDEST, rounded_rows
from ..packed.portable import Smoothing
from ..packed.smoothing import smoothing_of
from ..weights import EncoderConfig, EncoderWeights, LayerWeights, check_finite
from .library import Shape, best_isa, multiplied, native, second_level_cache_bytes, why_not

# kernels/cpu/native/common.h, enum Activation.
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "relu": 2, "silu": 3, "tanh": 4}

# The share of the second-level cache for a block's widest activation. AMX is fed from there and shares it with the
# weights that stream through. AVX-512 is so slow that reading the weights less often pays more (on Zen 4, 1 MiB: 96
# rows 0.80, 192 rows 0.86, 384 rows 0.87 of the unit's rate).
_CACHE_SHARE = {"amx_bf16": 0.6, "avx512_bf16": 1.2, "avx512_vnni": 1.2}
_ERROR_BYTES = 512


def unsupported(config: EncoderConfig) -> str | None:
    """Why the native kernel can't run an encoder of this shape, or None if it can."""
    if config.activation not in ACTIVATIONS:
        return f"activation {config.activation!r} (it has {', '.join(ACTIVATIONS)})"
    for name, value, step, most in (
        ("hidden_size", config.hidden_size, 64, 4096),
        ("intermediate_size", config.intermediate_size, 64, WIDEST),
        ("head size", config.head_size, 16, 4096),
        ("embedding_size", config.embedding_size, 16, 4096),
    ):
        if value % step or value > most:
            return f"{name} {value} (it must be a multiple of {step}, at most {most})"
    return None


def usable(config: EncoderConfig, isa: str | None) -> tuple[ctypes.CDLL, str]:
    """The library, and `isa` or the fastest instruction set. Raises UserError where the encoder can't run here."""
    isa = isa or best_isa()
    library = native().library
    if library is None or isa is None:
        raise UserError(f"kernel native can't run: {why_not()}")
    reason = unsupported(config)
    if reason is not None:
        raise UserError(f"kernel native does not support {reason}; use kernel portable")
    return library, isa


class NativeEncoder:
    """A frozen encoder on the host: ``encoder(batch)`` gives float32 features [sequences, hidden].

    Padded batches are packed first, and give the same bits.

    Args:
        weights: Any floating dtype, rounded to bfloat16.
        isa: An instruction set of `library.ISAS`, which says what linear layers multiply. By default the fastest for
            bfloat16. Attention always multiplies bfloat16.
        threads: The number of threads. By default torch's number at each call.
        block_tokens: Rows that are processed together. By default as many as fit into the second-level cache.

    Raises:
        UserError: The extension or the instruction set is missing, the shape or the activation is not supported, or
            weights are NaN or infinite.
    """

    name = "native"
    skips_padding = True
    batch_invariant = True

    def __init__(
        self,
        weights: EncoderWeights,
        isa: str | None = None,
        threads: int | None = None,
        block_tokens: int | None = None,
    ) -> None:
        library, isa = usable(weights.config, isa)
        check_finite(weights)
        self.config = weights.config
        self.isa = isa
        # Another compiler or an edited source may round differently, and features are cached on disk under this name.
        self.version = f"1-{isa}-{native().build}"
        self.threads = threads
        self.block_tokens = block_tokens or default_block_tokens(isa, weights.config.intermediate_size)
        self._library = library
        # The kernel reads the word embeddings where they are.
        self._word_embeddings = _host(weights.word_embeddings, torch.bfloat16)
        self._handle = self._create(weights)
        weakref.finalize(self, library.isotrain_cpu_destroy, self._handle)

    @torch.no_grad()
    def __call__(self, batch: PackedBatch | PaddedBatch) -> torch.Tensor:
        """Features, float32 [sequences, hidden], on the host.

        Raises:
            UserError: The batch doesn't fit the encoder (see the batch's `validate`).
        """
        packed = self._packed(batch)
        features = torch.empty(packed.num_sequences, self.config.hidden_size, dtype=torch.float32)
        self._run(self._library.isotrain_cpu_encode, packed, features)
        return features

    @torch.no_grad()
    def layer_states(
        self, batch: PackedBatch | PaddedBatch, given: Sequence[torch.Tensor] | None = None
    ) -> list[torch.Tensor]:
        """Every token's hidden state: the first layer's input, then each layer's output.

        Returns:
            R + 1 tensors, float32 [tokens, hidden]. For a padded batch, [sequences, length, hidden] with zeros at
            padding. With `given`, R such tensors, each layer is applied to its own one, and there are R results.
        """
        packed = self._packed(batch)
        real = batch.attention_mask.bool().cpu() if isinstance(batch, PaddedBatch) else None
        hidden, count = self.config.hidden_size, self.config.num_layers
        features = torch.empty(packed.num_sequences, hidden, dtype=torch.float32)
        states = torch.empty(count + 1, packed.num_tokens, hidden, dtype=torch.float32)
        inputs = None
        if given is not None:
            tokens = [_host(x, torch.float32) for x in given]
            inputs = torch.stack([x.reshape(-1, hidden) if real is None else x[real] for x in tokens])
            if inputs.shape != (count, packed.num_tokens, hidden):
                raise UserError(f"a replay takes {count} states [{packed.num_tokens}, {hidden}], not {inputs.shape}")
        self._run(self._library.isotrain_cpu_watch, packed, features, inputs, states)
        found = list(states if given is None else states[1:])
        return found if real is None else [_spread(state, real) for state in found]

    def _packed(self, batch: PackedBatch | PaddedBatch) -> PackedBatch:
        """`batch`, checked, on the host and without padding."""
        batch.validate(self.config)
        batch = batch.to("cpu")
        packed = batch.to_packed() if isinstance(batch, PaddedBatch) else batch
        if packed.host_lengths.sum() != packed.num_tokens:
            raise UserError(
                f"the batch has {packed.num_tokens} tokens, its lengths add up to {packed.host_lengths.sum()}"
            )
        return packed

    def _run(self, function: Callable[..., int], packed: PackedBatch, *tensors: torch.Tensor | None) -> None:
        """Calls a function of the library on a batch. `tensors` are its arguments between threads and error."""
        ids = _host(packed.input_ids, torch.int64)
        positions = _host(packed.position_ids, torch.int64)
        types = None if packed.token_type_ids is None else _host(packed.token_type_ids, torch.int64)
        bounds = np.zeros(packed.num_sequences + 1, dtype=np.int64)
        np.cumsum(packed.host_lengths, out=bounds[1:])
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        code = function(
            self._handle,
            ids.data_ptr(),
            positions.data_ptr(),
            None if types is None else types.data_ptr(),
            bounds.ctypes.data,
            packed.num_sequences,
            self.threads or torch.get_num_threads(),
            *(None if tensor is None else tensor.data_ptr() for tensor in tensors),
            error,
            _ERROR_BYTES,
        )
        if code:
            raise UserError(error.value.decode())

    def _create(self, weights: EncoderWeights) -> int:
        config, shape = self.config, shape_of(weights, self.block_tokens)
        tensors = [self._word_embeddings, *_embedding_tensors(weights, multiplied(self.isa))]
        smoothing = smoothing_of(weights) if multiplied(self.isa) == "int8" else (None,) * len(weights.layers)
        for layer, factors in zip(weights.layers, smoothing, strict=True):
            tensors += _layer_tensors(layer, multiplied(self.isa), factors)
        pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
        order = (ctypes.c_int32 * config.num_layers)(*config.weights_of_layer)
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = self._library.isotrain_cpu_create(
            self.isa.encode(), ctypes.byref(shape), pointers, order, error, _ERROR_BYTES
        )
        if not handle:
            raise UserError(f"kernel native can't be built for these weights: {error.value.decode()}")
        return handle


def shape_of(weights: EncoderWeights, block_tokens: int = 1) -> Shape:
    config = weights.config
    return Shape(
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_heads,
        embedding=config.embedding_size,
        vocab=config.vocab_size,
        positions=config.max_positions,
        types=config.type_vocab_size,
        activation=ACTIVATIONS[config.activation],
        project=weights.projection_weight is not None,
        layers=len(weights.layers),
        num_layers=config.num_layers,
        block_tokens=block_tokens,
        eps=config.layer_norm_eps,
    )


def default_block_tokens(isa: str, intermediate_size: int) -> int:
    """Rows with feed-forward activations (bfloat16) that fill their share of a core's second-level cache.

    A multiple of 96 from 96 to 384, so that neither AMX's blocks of 32 rows nor AVX-512's of 6 have a remainder.
    """
    rows = _CACHE_SHARE.get(isa, 0.6) * second_level_cache_bytes() / (2 * intermediate_size)
    return min(max(96, int(rows) // 96 * 96), 384)


def _embedding_tensors(weights: EncoderWeights, dtype: str) -> list[torch.Tensor | None]:
    projection, bias = weights.projection_weight, weights.projection_bias
    return [
        _rounded(weights.position_embeddings),
        _rounded(weights.token_type_embeddings),
        _rounded(weights.embedding_norm_weight),
        _rounded(weights.embedding_norm_bias),
        *([None] * 3 if projection is None or bias is None else _product(projection, bias, dtype)),
    ]


def _layer_tensors(layer: LayerWeights, dtype: str, smoothing: Smoothing | None) -> list[torch.Tensor | None]:
    """Eighteen tensors in the order that native/api.cpp expects."""
    qkv = torch.cat((layer.query_weight, layer.key_weight, layer.value_weight))
    qkv_bias = torch.cat((layer.query_bias, layer.key_bias, layer.value_bias))
    ffn = layer.ffn_weight
    inverse: list[torch.Tensor | None] = [None, None]
    if smoothing is not None:
        qkv, ffn = qkv * smoothing.qkv, ffn * smoothing.ffn
        inverse = [_host(1 / factors, torch.float32) for factors in (smoothing.qkv, smoothing.ffn)]
    return [
        *_product(qkv, qkv_bias, dtype),
        *_product(layer.attention_output_weight, layer.attention_output_bias, dtype),
        *map(_rounded, (layer.attention_norm_weight, layer.attention_norm_bias)),
        *_product(ffn, layer.ffn_bias, dtype),
        *_product(layer.ffn_output_weight, layer.ffn_output_bias, dtype),
        *map(_rounded, (layer.output_norm_weight, layer.output_norm_bias)),
        *inverse,
    ]


def _product(weight: torch.Tensor, bias: torch.Tensor, dtype: str) -> list[torch.Tensor | None]:
    """A linear layer's weight in its format, the scales of its rows if it has 8 bits, and its bias."""
    if dtype == "bfloat16":
        return [_host(weight, torch.bfloat16), None, _rounded(bias)]
    values, scale = rounded_rows(_rounded(weight), FORMATS[dtype])
    return [values, scale, _rounded(bias)]


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded to bfloat16 like every weight, stored in float32."""
    return _host(tensor.detach().to(torch.bfloat16), torch.float32)


def _spread(state: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """[tokens, hidden] placed where `real` [sequences, length] is True, with zeros elsewhere."""
    spread = state.new_zeros(*real.shape, state.shape[-1])
    spread[real] = state
    return spread


def _host(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype).contiguous()
