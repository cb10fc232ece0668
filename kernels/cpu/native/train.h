// What the C interface of the training step and the code of each instruction set share: the encoder's packed weights,
// and the memory of one forward and backward pass.
#pragma once

#include "common.h"
#include "team.h"

namespace isotrain {

// The float32 master tensors of a layer, each weight followed by its bias (LayerWeights in kernels/weights.py).
enum LayerTensor {
    kQuery = 0,
    kKey = 2,
    kValue = 4,
    kAttentionOutput = 6,
    kAttentionNorm = 8,
    kFfn = 10,
    kFfnOutput = 12,
    kOutputNorm = 14,
    kLayerTensors = 16
};

// Those before the layers': the weight and bias of ALBERT's projection.
constexpr int kProjectionTensors = 2;

// bfloat16 copies of a weight [n][k] for both products with it, and a copy of its bias.
struct TrainWeight {
    bf16* forward = nullptr;   // X W^T: [n / panel][k / 2][panel][2]
    bf16* backward = nullptr;  // dY W: [k / panel][n / 2][panel][2]
    float* bias = nullptr;
    int n = 0, k = 0;
};

struct TrainLayer {
    TrainWeight qkv, attention_output, ffn, ffn_output;
    Norm attention_norm, output_norm;
};

// The rows [first, first + n) of a weight are a copy of a master.
struct WeightCopy {
    int master, first, n;
    TrainWeight weight;
};

struct VectorCopy {
    int master, count;
    float* to;
};

struct TrainModel {
    int hidden, intermediate, heads, head_size, embedding, activation;
    float eps;
    int panel;
    bool project;
    TrainWeight projection;
    std::vector<TrainLayer> layers;
    std::vector<int> weights_of_layer;
    std::vector<int> use_of_layer;    // how many layers before it have the same weights
    std::vector<int> uses_of_weights; // how many layers have them
    std::vector<WeightCopy> weight_copies;
    std::vector<VectorCopy> vector_copies;
};

// What a forward pass keeps for a backward pass: nothing, each layer's input (the rest is computed again), or all of it.
enum Keep { kNothing = 0, kInputs = 1, kEverything = 2 };

// Inputs of products with one weight, as second factors of its gradient: [width / panel][depth / 2][panel][2], one use
// of the weight beneath the other.
struct PackedInputs {
    bf16 *layer, *attended, *middle, *inner;  // of qkv, attention_output, ffn and ffn_output
    std::size_t depth;
};

// What one layer's backward pass needs of its forward pass besides these.
struct Saved {
    bf16 *qkv, *attended;
    bf16* slope;                            // of the activation function
    bf16 *attention_unit, *output_unit;     // rows after LayerNorm, without its weight and bias
    float *attention_scale, *output_scale;  // one over the standard deviation of each row
    float* log_sums;                        // of each sequence's softmax: [heads][length]
};

// One pass. Rows of bfloat16 are spread() apart, and 32 more than there are tokens can be read.
struct TrainTape {
    Keep keep = kNothing;
    int tokens = 0, even = 0;  // even: tokens and, if their number is odd, one row of zeros
    int longest;
    int uses;          // of one weight whose gradients are computed by one product
    std::vector<std::int64_t> bounds;
    std::uint64_t key;
    float attention_dropout, attention_output_dropout, output_dropout;

    std::vector<Saved> saved;          // of each layer, or of one
    std::vector<PackedInputs> inputs;  // of each weight set, or of one
    std::vector<float*> streams;       // each layer's input in float32: of each layer, or of one
    bf16 *layer_rows, *middle_rows, *inner_rows, *embedded_rows, *embedded_packed;
    float *middle, *sums;
    // The backward pass: float32 gradients of the residual stream, and those of `uses` products' outputs.
    float* gradient;
    bf16 *qkv_gradient, *attention_gradient, *inner_gradient, *output_gradient, *attended_gradient;
    float* norm_sums;  // [uses][2 norms][blocks of kNormRows rows][weight, bias][hidden]
};

// Rows whose weight gradients are computed by one product: enough that its float32 result is seldom read again, few
// enough that a part of it stays in the second-level cache.
constexpr int kGradientTokens = 2048;

constexpr int kNormRows = 16;

struct TrainForward {
    const float* const* masters;  // as LayerTensor numbers them, after those of the projection (or two nulls)
    const float* embedded;        // [tokens][embedding]
    float* states;                // [tokens][hidden]
    const float* given;           // null, or [layers][tokens][hidden]: each layer's input instead of its own
    float* layer_states;          // null, or [layers + 1][tokens][hidden]: as Watch.states
};

struct TrainBackward {
    const float* states;      // gradients of the states
    float* embedded;          // null, or where the gradients of the input go
    float* const* gradients;  // for each master null, or where its gradient goes
};

// One instruction set's training step. Every thread of a team calls the same function with a scratch of its own.
struct Training {
    // For sequences of up to `longest` tokens, and weight gradients over up to `depth` rows.
    Scratch* (*make_scratch)(const TrainModel&, int longest, int depth);
    void (*forward)(const TrainModel&, TrainTape&, Scratch&, Team&, const TrainForward&);
    void (*backward)(const TrainModel&, TrainTape&, Scratch&, Team&, const TrainBackward&);
};

}  // namespace isotrain
