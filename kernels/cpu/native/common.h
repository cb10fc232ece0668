// What every part of the CPU kernel shares: number formats, aligned memory, the model's packed form.
// Everything has internal linkage: each translation unit is compiled for another instruction set, and the linker must
// never mix their functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace isotrain {
namespace {

using bf16 = std::uint16_t;

constexpr int kVector = 16;     // float32 lanes of a 512-bit register
constexpr int kTileBytes = 64;  // a row of an AMX tile
constexpr int kDepth = 32;      // bfloat16 in such a row
constexpr int kZero = 128;      // what stands for 0 in unsigned bytes
constexpr std::size_t kHugePage = std::size_t{2} << 20;

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// The distance between rows of `width` values of `bytes` each: an odd number of cache lines, so that the 16 rows of a
// tile never fall onto a few sets of the first-level cache (a multiple of 4 KB would put all of them onto one).
constexpr std::size_t spread(int width, int bytes = sizeof(bf16)) {
    const int line = 64 / bytes;
    return std::size_t((width + line - 1) / line | 1) * line;
}

struct Free {
    void operator()(void* pointer) const { std::free(pointer); }
};

template <class T>
using Buffer = std::unique_ptr<T[], Free>;

// Zeroed memory aligned to cache lines, or to huge pages if it is large. Throws std::bad_alloc.
template <class T>
Buffer<T> allocate(std::size_t count) {
    std::size_t bytes = count * sizeof(T);
    const std::size_t alignment = bytes >= kHugePage ? kHugePage : 64;
    bytes = (bytes + alignment - 1) / alignment * alignment;
    void* memory = std::aligned_alloc(alignment, bytes ? bytes : alignment);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (alignment == kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes ? bytes : alignment);
    return Buffer<T>(static_cast<T*>(memory));
}

}  // namespace

// A linear layer whose weight is packed for the matrix unit: [n / panel][k / group][panel][group], zeros where k is
// padded. A group is two bfloat16, or four signed bytes with a scale for each output column.
struct Linear {
    const void* weight = nullptr;
    const float* bias = nullptr;
    int n = 0;
    int k = 0;  // padded to kTileBytes
    const float* scale = nullptr;          // null for bfloat16
    const std::int32_t* offset = nullptr;  // kZero times the sum of each column's bytes
    const float* input = nullptr;          // by which an input's channels are multiplied, or null
};

struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
};

struct Layer {
    Linear qkv, attention_output, ffn, ffn_output;
    Norm attention_norm, output_norm;
};

enum Activation { kGeluErf = 0, kGeluTanh = 1, kRelu = 2, kSilu = 3, kTanh = 4 };

struct Model {
    int hidden, intermediate, heads, head_size, embedding, vocab, positions, types, activation;
    float eps;
    int panel;         // columns of a packed weight panel
    int block_tokens;  // rows that go through the layers together
    bool project;      // ALBERT: embeddings are smaller than the hidden size
    const bf16* word_embeddings;
    const float* position_embeddings;
    const float* type_embeddings;
    Norm embedding_norm;
    Linear projection;
    std::vector<Layer> layers;
    std::vector<int> weights_of_layer;
};

// A run of whole sequences that one thread computes through all layers.
struct Block {
    std::int64_t first_sequence, sequences, first_token, tokens;
};

struct Input {
    const std::int64_t* input_ids;
    const std::int64_t* position_ids;
    const std::int64_t* token_type_ids;  // null: all 0
    const std::int64_t* cu_seqlens;
};

// All hidden states, float32, for comparisons layer by layer.
struct Watch {
    std::int64_t tokens;  // of the whole batch
    const float* given;   // null, or [layers][tokens][hidden]: each layer's input instead of its own
    float* states;        // [layers + 1][tokens][hidden]: the first layer's input, then each layer's output
};

// The embedding of a trained encoder and the tokens of a batch.
struct Embedding {
    std::int32_t width;
    float eps, rate;    // rate and key: of the dropout (philox.h)
    std::uint64_t key;
    std::int64_t tokens;
    const float *word, *position, *type;  // tables [rows][width]
    Norm norm;
    const std::int64_t *ids, *positions, *types;  // types null: all 0
};

// Tables and vectors that gradients are added to.
struct EmbeddingGradients {
    float *word, *position, *type, *norm_weight, *norm_bias;
    std::int64_t padding;  // the word without a gradient, or -1
};

// One head's attention, forward and backward, for tests. AMX reads 32 rows after the last of qkv and out_gradient.
struct AttentionProbe {
    std::int32_t size, length;
    std::uint64_t key;  // of the dropout (philox.h)
    float rate;
    std::uint32_t site, first, step;
    const bf16* qkv;           // [length + 32][3 size]
    const bf16* out_gradient;  // [length + 32][size]
    bf16* out;                 // [length][size]
    float* log_sums;           // [length]
    bf16* qkv_gradient;        // [length][3 size]
};

// One instruction set's code: scratch memory for blocks of up to `tokens` tokens, and the forward pass of one block.
struct Scratch {
    virtual ~Scratch() = default;
};

struct Training;

struct Engine {
    const char* name;
    int panel;
    int element;  // bytes of an operand: 2 for bfloat16, else 1
    Scratch* (*make_scratch)(const Model&, std::int64_t tokens, std::int64_t sequences, std::int64_t longest);
    // features: float32 [all sequences][hidden]; the block's rows are written. With a watch the last layer is
    // computed for all tokens, and nothing else differs.
    void (*forward)(const Model&, Scratch&, const Input&, const Block&, float* features, const Watch*);
    // Operations per second of products with operands from a working set of `bytes`.
    double (*unit_rate)(std::size_t bytes, double seconds);
    // Bits that tell whether the thread is ready for this instruction set (AMX has tile shapes per thread).
    void (*enter_thread)();
    void (*leave_thread)();
    const Training* training;  // train.h; null if it trains nothing
    void (*embed)(const Embedding&, float* out);  // out: [tokens][width]
    void (*embed_backward)(const Embedding&, const float* gradient, const EmbeddingGradients&);
    void (*probe_attention)(const AttentionProbe&);
    void (*probe_dropout)(std::uint64_t key, float rate, std::uint32_t site, std::uint32_t row, int columns,
                          float* factors);
    void (*probe_philox)(const std::uint32_t* counters, std::uint64_t key, std::uint32_t* bits);
};

const Engine* avx512_engine();
const Engine* avx512_int8_engine();
const Engine* amx_engine();
const Engine* amx_int8_engine();
const Engine* amx_emulated_engine();
const Engine* amx_int8_emulated_engine();

// The engine of this name, or null if the processor can't run it.
const Engine* engine_called(const char* name);

}  // namespace isotrain
