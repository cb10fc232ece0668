// Runs the training step on small shapes with every tensor exactly as large as the interface asks for. Built with the
// address and undefined-behaviour sanitizers by test_sanitizers.py.
#include "../../kernels/cpu/native/standard.h"

#include <random>

#include "../../kernels/cpu/native/interface.h"

struct Batch {
    const std::int64_t* cu_seqlens;
    std::int64_t sequences;
    std::uint64_t key;
    float rates[3];
    std::int32_t keep, threads;
};

extern "C" {
void* isotrain_cpu_train_create(const char*, const isotrain::Shape*, const std::int32_t*, char*, std::size_t);
void isotrain_cpu_train_destroy(void*);
void* isotrain_cpu_train_tape();
void isotrain_cpu_train_destroy_tape(void*);
int isotrain_cpu_train_forward(void*, void*, const Batch*, const float* const*, const float*, float*, const float*,
                               float*, char*, std::size_t);
int isotrain_cpu_train_backward(void*, void*, int, const float*, float*, float* const*, char*, std::size_t);
}

namespace {

std::mt19937 generator(1);

// The smallest heap block of its size: the sanitizer sees the first byte behind it.
std::unique_ptr<float[]> floats(std::size_t count) {
    std::unique_ptr<float[]> values(new float[count]);
    for (std::size_t i = 0; i < count; ++i) values[i] = std::normal_distribution<float>(0.0f, 0.1f)(generator);
    return values;
}

int run(const char* isa, bool project, int embedding, const std::vector<std::int32_t>& order, int layers, int threads) {
    constexpr int hidden = 64, inner = 128;
    const isotrain::Shape shape{hidden, inner, 4, embedding, 1, 1, 1, isotrain::kGeluErf, project, layers,
                                int(order.size()), 1, 1e-12f};
    char error[256] = "";
    void* trainer = isotrain_cpu_train_create(isa, &shape, order.data(), error, sizeof error);
    if (!trainer) return 0;
    std::vector<std::size_t> sizes = {std::size_t(project ? hidden * embedding : 0), std::size_t(project ? hidden : 0)};
    for (int layer = 0; layer < layers; ++layer)
        for (std::size_t size : {hidden * hidden, hidden, hidden * hidden, hidden, hidden * hidden, hidden,
                                 hidden * hidden, hidden, hidden, hidden, inner * hidden, inner, hidden * inner, hidden,
                                 hidden, hidden})
            sizes.push_back(size);
    std::vector<std::unique_ptr<float[]>> masters, gradients;
    std::vector<const float*> master_pointers;
    std::vector<float*> gradient_pointers;
    for (std::size_t size : sizes) {
        masters.push_back(floats(size));
        gradients.push_back(floats(size));
        master_pointers.push_back(size ? masters.back().get() : nullptr);
        gradient_pointers.push_back(size ? gradients.back().get() : nullptr);
    }
    int runs = 0;
    void* tape = isotrain_cpu_train_tape();
    for (const std::vector<std::int64_t>& bounds :
         {std::vector<std::int64_t>{0, 1}, {0, 7, 8, 41, 57}, {0, 130, 131}, {0, 3, 6}, {0, 900, 1101}})
        for (int keep : {1, 2, 0}) {
            const auto tokens = std::size_t(bounds.back());
            const Batch batch{bounds.data(), std::int64_t(bounds.size()) - 1, 5, {0.1f, 0.2f, 0.3f}, keep, threads};
            const auto embedded = floats(tokens * embedding), states = floats(tokens * hidden);
            const auto slope = floats(tokens * hidden), to = floats(tokens * embedding);
            const auto all = floats((order.size() + 1) * tokens * hidden);
            if (isotrain_cpu_train_forward(trainer, tape, &batch, master_pointers.data(), embedded.get(), states.get(),
                                           nullptr, keep ? nullptr : all.get(), error, sizeof error))
                return 0;
            if (keep) isotrain_cpu_train_backward(trainer, tape, threads, slope.get(), to.get(),
                                                  gradient_pointers.data(), error, sizeof error);
            ++runs;
        }
    isotrain_cpu_train_destroy_tape(tape);
    isotrain_cpu_train_destroy(trainer);
    return runs;
}

}  // namespace

int main() {
    int runs = 0;
    for (const char* isa : {"amx_bf16", "avx512_bf16", "amx_emulated"}) {
        runs += run(isa, true, 48, {0, 0, 1, 0}, 2, 3);
        runs += run(isa, false, 64, {0, 1}, 2, 2);
    }
    std::printf("%d runs\n", runs);
    return 0;
}
