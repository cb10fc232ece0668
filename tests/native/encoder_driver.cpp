// Runs the encoder on small shapes with every buffer exactly as large as the interface asks for. Built with the address
// and undefined-behaviour sanitizers by test_sanitizers.py: an access outside ends the program with a report.
#include <cstdint>
#include <cstdio>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

struct Shape {
    std::int32_t hidden, intermediate, heads, embedding, vocab, positions, types, activation, project, layers,
        num_layers, block_tokens;
    float eps;
};

extern "C" {
int isotrain_cpu_has(const char*);
void* isotrain_cpu_create(const char*, const Shape*, const void* const*, const std::int32_t*, char*, std::size_t);
void isotrain_cpu_destroy(void*);
int isotrain_cpu_encode(void*, const std::int64_t*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                        std::int64_t, int, float*, char*, std::size_t);
int isotrain_cpu_watch(void*, const std::int64_t*, const std::int64_t*, const std::int64_t*, const std::int64_t*,
                       std::int64_t, int, float*, const float*, float*, char*, std::size_t);
double isotrain_cpu_unit_rate(const char*, std::size_t, double);
}

namespace {

std::mt19937 generator(1);

// The smallest heap block of its size: the sanitizer sees the first byte behind it.
template <class T>
struct Exact {
    explicit Exact(std::size_t count) : data(new T[count]), size(count) {}
    std::unique_ptr<T[]> data;
    std::size_t size;
};

Exact<std::uint16_t> bfloat16s(std::size_t count) {
    std::normal_distribution<float> normal(0.0f, 0.1f);
    Exact<std::uint16_t> values(count);
    for (std::size_t i = 0; i < count; ++i) {
        const float value = normal(generator);
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        values.data[i] = std::uint16_t(bits >> 16);
    }
    return values;
}

Exact<float> floats(std::size_t count, float mean) {
    std::normal_distribution<float> normal(mean, 0.1f);
    Exact<float> values(count);
    for (std::size_t i = 0; i < count; ++i) values.data[i] = normal(generator);
    return values;
}

int run(const char* isa, const Shape& shape, const std::vector<int>& lengths, bool pairs, int threads) {
    const std::size_t h = shape.hidden, f = shape.intermediate, e = shape.embedding;
    std::vector<Exact<std::uint16_t>> matrices;
    std::vector<Exact<std::int8_t>> bytes;
    std::vector<Exact<float>> vectors;
    std::vector<const void*> tensors;
    const bool int8 = std::strstr(isa, "int8") || std::strstr(isa, "vnni");
    const auto matrix = [&](std::size_t n, std::size_t k) {
        matrices.push_back(bfloat16s(n * k));
        tensors.push_back(matrices.back().data.get());
    };
    const auto vector = [&](std::size_t n, float mean = 0.0f) {
        vectors.push_back(floats(n, mean));
        tensors.push_back(vectors.back().data.get());
    };
    const auto product = [&](std::size_t n, std::size_t k) {
        if (int8) {
            bytes.emplace_back(n * k);
            for (std::size_t i = 0; i < n * k; ++i) bytes.back().data[i] = std::int8_t(int(generator() % 255) - 127);
            tensors.push_back(bytes.back().data.get());
            vector(n, 0.001f);
        } else {
            matrix(n, k);
            tensors.push_back(nullptr);
        }
        vector(n);
    };
    matrix(shape.vocab, e);
    vector(shape.positions * e);
    vector(shape.types * e);
    vector(e, 1.0f);
    vector(e);
    if (shape.project) {
        product(h, e);
    } else {
        tensors.insert(tensors.end(), 3, nullptr);
    }
    for (int layer = 0; layer < shape.layers; ++layer) {
        product(3 * h, h);
        product(h, h);
        vector(h, 1.0f), vector(h);
        product(f, h);
        product(h, f);
        vector(h, 1.0f), vector(h);
        // What the inputs of qkv and ffn are multiplied by.
        for (int input = 0; input < 2; ++input) {
            if (int8)
                vector(h, 1.0f);
            else
                tensors.push_back(nullptr);
        }
    }
    Exact<std::int32_t> order(shape.num_layers);
    for (int r = 0; r < shape.num_layers; ++r) order.data[r] = r % shape.layers;

    std::size_t tokens = 0;
    for (int length : lengths) tokens += length;
    Exact<std::int64_t> ids(tokens), positions(tokens), types(tokens), bounds(lengths.size() + 1);
    bounds.data[0] = 0;
    std::size_t token = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
        for (int position = 0; position < lengths[s]; ++position, ++token) {
            ids.data[token] = generator() % shape.vocab;
            positions.data[token] = position;
            types.data[token] = position % shape.types;
        }
        bounds.data[s + 1] = token;
    }
    Exact<float> features(lengths.size() * h);
    char error[256] = "";
    void* encoder = isotrain_cpu_create(isa, &shape, tensors.data(), order.data.get(), error, sizeof error);
    int code = encoder == nullptr;
    for (int repeat = 0; repeat < 2 && !code; ++repeat)
        code = isotrain_cpu_encode(encoder, ids.data.get(), positions.data.get(), pairs ? types.data.get() : nullptr,
                                   bounds.data.get(), std::int64_t(lengths.size()), threads, features.data.get(), error,
                                   sizeof error);
    Exact<float> states((shape.num_layers + 1) * tokens * h), watched(lengths.size() * h);
    for (const float* given : {static_cast<const float*>(nullptr), static_cast<const float*>(states.data.get())})
        if (!code) {
            std::vector<float> inputs(given, given ? given + states.size - tokens * h : given);
            code = isotrain_cpu_watch(encoder, ids.data.get(), positions.data.get(),
                                      pairs ? types.data.get() : nullptr, bounds.data.get(),
                                      std::int64_t(lengths.size()), threads, watched.data.get(),
                                      given ? inputs.data() : nullptr, states.data.get(), error, sizeof error);
        }
    for (std::size_t i = 0; i < features.size && !code; ++i)
        code = !std::isfinite(features.data[i]) || features.data[i] != watched.data[i];
    if (encoder) isotrain_cpu_destroy(encoder);
    if (code) std::printf("%s hidden %d: %s\n", isa, shape.hidden, error);
    return code;
}

}  // namespace

int main() {
    const Shape shapes[] = {
        // hidden, intermediate, heads, embedding, vocab, positions, types, activation, project, layers, reps, block, eps
        {64, 128, 4, 32, 50, 160, 2, 1, 1, 1, 3, 96, 1e-12f},   // head size 16: narrower than a tile is deep
        {128, 192, 2, 128, 40, 160, 2, 0, 0, 2, 2, 32, 1e-12f},  // BERT, head size 64
        {192, 64, 4, 48, 30, 160, 1, 2, 1, 1, 1, 7, 1e-5f},     // head size 48, embedding no multiple of 32
        {64, 64, 2, 16, 9, 160, 3, 3, 1, 2, 4, 1, 1e-12f},      // one row a slice
        {64, 64, 1, 64, 9, 160, 3, 4, 0, 1, 2, 40, 1e-12f},
    };
    const std::vector<std::vector<int>> batches = {{1}, {2, 1, 31, 32, 33, 16, 17, 15}, {130}, {97, 1, 96, 5, 6, 7, 95}};
    int ran = 0, failed = 0;
    for (const char* isa : {"avx512_bf16", "avx512_vnni", "amx_emulated", "amx_int8_emulated", "amx_bf16", "amx_int8"}) {
        if (!isotrain_cpu_has(isa)) continue;
        for (const Shape& shape : shapes)
            for (const auto& lengths : batches)
                for (int threads : {1, 3}) {
                    failed += run(isa, shape, lengths, shape.types > 1, threads) != 0;
                    ++ran;
                }
        failed += !(isotrain_cpu_unit_rate(isa, 1 << 14, 0.0) > 0.0);
    }
    std::printf("%d runs, %d failed\n", ran, failed);
    return failed != 0;
}
