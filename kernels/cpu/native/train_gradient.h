// The gradient of a weight, for any instruction set `Isa`.
#pragma once

#include "train_rows.h"

namespace isotrain {
namespace {

constexpr int kTaskRows = 96;       // of a product's first factor: what the second-level cache holds with a panel
constexpr int kTasksPerThread = 2;  // at least, so that threads end about together

// dY^T X, and the sum of dY for the bias.
struct WeightGradient {
    Rows<const bf16> gradient;  // dY, one row for each row of X
    PackedRows input;           // X
    int n, k;
    float *weight, *bias;  // null: not wanted
};

inline void store_sums(float* to, __m512 sums, bool more) {
    _mm512_storeu_ps(to, more ? _mm512_add_ps(_mm512_loadu_ps(to), sums) : sums);
}

// Memory for a part of dY turned into columns: up to `count` of them, over up to `depth` rows.
inline std::size_t turned_size(int count, int depth) {
    return std::size_t(count + 32) * spread(round_up(std::min(depth, kGradientTokens), kDepth));
}

// The rows [first, first + count) of a weight's gradient from `depth` rows of dY and X, whose number is even. `add`: to
// what is there.
template <class Isa>
void weight_gradient(float* block, bf16* scratch, const WeightGradient& g, int first, int count, int depth, bool add) {
    if (!g.weight && !g.bias) return;
    for (int at = 0; at < depth; at += kGradientTokens) {
        const int part = std::min(depth - at, kGradientTokens), k = round_up(part, Isa::kStep);
        const int columns = round_up(part, std::max(Isa::kStep, kVector));
        const bool more = add || at > 0;
        const Rows<bf16> turned{scratch, spread(columns)};
        turn({g.gradient[at] + first, g.gradient.stride}, part, columns, count, turned);
        for (int row = 0; g.bias && row < count; ++row) {
            const float sum = sum_bf16(turned[row], columns);
            g.bias[first + row] = more ? g.bias[first + row] + sum : sum;
        }
        for (int column = 0; g.weight && column < g.k; column += Isa::kPanel) {
            const bf16* panel = g.input.panel(column, Isa::kPanel) + std::size_t(at) * Isa::kPanel;
            product<Isa>(block, {turned.data, turned.stride}, count, panel, 2 * Isa::kPanel,
                         std::min(g.k - column, Isa::kPanel), k, [&](int row, int offset, __m512 sums) {
                             store_sums(g.weight + std::size_t(first + row) * g.k + column + offset, sums, more);
                         });
        }
    }
}

// Several of them, shared out in parts of up to kTaskRows rows. block, scratch: a thread's memory.
template <class Isa>
void weight_gradients(Team& team, float* block, bf16* scratch, const WeightGradient* list, int count, int depth,
                      bool add) {
    int total = 0, rows = kTaskRows;
    for (int index = 0; index < count; ++index) total += list[index].n;
    while (rows > 32 && total / rows < kTasksPerThread * team.size()) rows /= 2;
    int tasks = 0;
    for (int index = 0; index < count; ++index) tasks += (list[index].n + rows - 1) / rows;
    team.each(tasks, [&](int task) {
        int before = 0;
        for (int index = 0; index < count; ++index) {
            const int part = task - before, first = part * rows, parts = (list[index].n + rows - 1) / rows;
            if (part >= 0 && part < parts)
                weight_gradient<Isa>(block, scratch, list[index], first, std::min(list[index].n - first, rows), depth,
                                     add);
            before += parts;
        }
    });
}

}  // namespace
}  // namespace isotrain
