// One whole optimizer step of the classification head, Linear -> GELU -> Linear -> cross entropy -> AdamW, in float32 on
// one thread. A weight row's gradient stays in registers: it is summed over the batch and applied to the moments and
// the weight at once, so every parameter is read and written once per step.
//
// Included by translation units for several instruction sets. The compiler maps 16 lanes to their registers.
#pragma once

#include "common.h"
#include "head_step.h"

// Instruction sets pass vectors wider than the registers differently, but none leaves its translation unit.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace isotrain {
namespace {

typedef float Lanes __attribute__((vector_size(64)));
typedef std::int32_t IntLanes __attribute__((vector_size(64)));

inline Lanes load(const float* from) {
    Lanes value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Lanes value) { std::memcpy(to, &value, sizeof value); }

inline float total(Lanes value) {
    float sum = 0.0f;
    for (int i = 0; i < kVector; ++i) sum += value[i];
    return sum;
}

inline Lanes square_root(Lanes value) {
    Lanes root;
    for (int i = 0; i < kVector; ++i) root[i] = __builtin_sqrtf(value[i]);
    return root;
}

// e^x for x <= 0: 2^n by the exponent bits, the rest by a minimax polynomial (relative error 8e-8).
inline Lanes exponential(Lanes x) {
    x = x * 1.44269504088896341f;
    x = x < -126.0f ? Lanes{} - 126.0f : x;  // In this form NaN stays NaN.
    const IntLanes whole = __builtin_convertvector(x - 0.5f, IntLanes);
    const Lanes f = x - __builtin_convertvector(whole, Lanes);
    Lanes p = f * 1.327646713e-03f + 9.675541239e-03f;
    p = p * f + 5.550713288e-02f;
    p = p * f + 2.402211973e-01f;
    p = p * f + 6.931469671e-01f;
    p = p * f + 1.000000072e+00f;
    const IntLanes bits = (whole + 127) << 23;
    Lanes scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// The normal distribution's cumulative function and density. erfc by the Chebyshev fit of Press et al., Numerical
// Recipes, section 6.2: relative error 1.2e-7 everywhere.
inline void normal(Lanes x, Lanes& cumulative, Lanes& density) {
    const Lanes z = (x < 0.0f ? -x : x) * 0.70710678f;
    const Lanes t = 1.0f / (1.0f + 0.5f * z);
    Lanes p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    const Lanes tail = 0.5f * t * exponential(p - z * z);
    cumulative = x < 0.0f ? tail : 1.0f - tail;
    density = exponential(-z * z) * 0.3989422804f;
}

// Rows are padded to whole vectors in the workspace, so only the parameters have remainders.
struct Padded {
    float* data;
    int stride;
    float* operator[](int row) const { return data + std::size_t(row) * stride; }
};

constexpr int kTexts = 8;  // texts with sums in registers together

// out[b][i] = x[b] . weight[i] + bias[i]
inline void affine(const Padded& x, const float* weight, const float* bias, int rows, int width, int batch,
                   const Padded& out) {
    const int whole = width / kVector * kVector;
    for (int first = 0; first < batch; first += kTexts) {
        const int count = std::min(kTexts, batch - first);
        // Rows after the last text are read in vain. The workspace contains them.
        for (int i = 0; i < rows; ++i) {
            const float* row = weight + std::size_t(i) * width;
            Lanes sum[kTexts] = {};
            for (int column = 0; column < whole; column += kVector) {
                const Lanes w = load(row + column);
#pragma GCC unroll 8
                for (int b = 0; b < kTexts; ++b) sum[b] += w * load(x[first + b] + column);
            }
            for (int b = 0; b < count; ++b) {
                float y = total(sum[b]) + bias[i];
                for (int column = whole; column < width; ++column) y += row[column] * x[first + b][column];
                out[first + b][i] = y;
            }
        }
    }
}

struct Rates {
    float decay, rest1, rest2, beta2, step, correction2, eps, l2;
};

// torch's AdamW (Loshchilov & Hutter 2019): the same operations in the same order as its fused CPU kernel.
template <class T, class Root>
inline void adam(const Rates& r, T gradient, T& p, T& m, T& v, const Root& root) {
    gradient = gradient + p * r.l2;
    p = p * r.decay;
    m = m + (gradient - m) * r.rest1;
    v = v * r.beta2 + gradient * gradient * r.rest2;
    p = p - m * r.step / (root(v) / r.correction2 + r.eps);
}

// Updates one row of `width` parameters. Their gradient is the sum over texts of scale[b] * x[b].
inline void update_row(const Rates& r, const Padded& x, const float* scale, int batch, int width, float* p, float* m,
                       float* v) {
    constexpr int kColumns = 4 * kVector;
    int column = 0;
    for (; column + kColumns <= width; column += kColumns) {
        Lanes gradient[4] = {};
        for (int b = 0; b < batch; ++b) {
            const float* row = x[b] + column;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) gradient[j] += load(row + j * kVector) * scale[b];
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const int at = column + j * kVector;
            Lanes pv = load(p + at), mv = load(m + at), vv = load(v + at);
            adam(r, gradient[j], pv, mv, vv, square_root);
            store(p + at, pv);
            store(m + at, mv);
            store(v + at, vv);
        }
    }
    for (; column < width; ++column) {
        float gradient = 0.0f;
        for (int b = 0; b < batch; ++b) gradient += x[b][column] * scale[b];
        adam(r, gradient, p[column], m[column], v[column], [](float value) { return __builtin_sqrtf(value); });
    }
}

inline void update_bias(const Rates& r, const Padded& slope, int batch, int width, float* p, float* m, float* v) {
    for (int i = 0; i < width; ++i) {
        float gradient = 0.0f;
        for (int b = 0; b < batch; ++b) gradient += slope[b][i];
        adam(r, gradient, p[i], m[i], v[i], [](float value) { return __builtin_sqrtf(value); });
    }
}

// Replaces logits by the gradient of the mean loss. sums: the batch's summed loss and number of correct texts.
inline void cross_entropy(const Padded& logits, const std::int64_t* labels, int classes, int batch, float inverse,
                          float* sums) {
    double loss = 0.0;
    int right_answers = 0;
    for (int b = 0; b < batch; ++b) {
        float* row = logits[b];
        float most = row[0];
        int likeliest = 0;
        for (int c = 1; c < classes; ++c)
            if (row[c] > most) {
                most = row[c];
                likeliest = c;
            }
        right_answers += likeliest == labels[b];
        const float right = row[labels[b]] - most;
        float sum = 0.0f;
        for (int c = 0; c < logits.stride; c += kVector) {
            const Lanes e = exponential(load(row + c) - most);
            store(row + c, e);
        }
        for (int c = 0; c < classes; ++c) sum += row[c];
        loss += std::log(double(sum)) - double(right);
        for (int c = 0; c < classes; ++c) row[c] = row[c] / sum * inverse;
        row[labels[b]] -= inverse;
        for (int c = classes; c < logits.stride; ++c) row[c] = 0.0f;
    }
    sums[0] = float(loss);
    sums[1] = float(right_answers);
}

inline void head_step(const HeadTensors& t, const float* features, const std::int64_t* labels, int batch,
                      float inverse, const AdamSettings& s, float* workspace, float* sums) {
    const int rows = round_up(batch, kTexts);
    float* free_memory = workspace;
    const auto take = [&](int width) {
        const Padded part{free_memory, round_up(width, kVector)};
        free_memory += std::size_t(rows) * part.stride;
        return part;
    };
    const Padded x = take(t.features), z = take(t.hidden), a = take(t.hidden), slope = take(t.hidden),
                 logits = take(t.labels);
    for (int b = 0; b < batch; ++b)
        std::memcpy(x[b], features + std::size_t(b) * t.features, t.features * sizeof(float));

    affine(x, t.weight[0], t.weight[1], t.hidden, t.features, batch, z);
    for (int b = 0; b < batch; ++b)
        for (int i = 0; i < z.stride; i += kVector) {
            const Lanes value = load(z[b] + i);
            Lanes cumulative, density;
            normal(value, cumulative, density);
            store(a[b] + i, value * cumulative);
            store(z[b] + i, cumulative + value * density);  // GELU's derivative replaces its argument.
            store(slope[b] + i, Lanes{});
        }
    affine(a, t.weight[2], t.weight[3], t.labels, t.hidden, batch, logits);
    cross_entropy(logits, labels, t.labels, batch, inverse, sums);

    Rates r;
    const double step = double(++*t.step[0]);
    for (int i = 1; i < 4; ++i) *t.step[i] = *t.step[0];
    r.decay = s.decoupled ? float(1.0 - s.lr * s.weight_decay) : 1.0f;
    r.l2 = s.decoupled ? 0.0f : float(s.weight_decay);
    r.rest1 = float(1.0 - s.beta1);
    r.rest2 = float(1.0 - s.beta2);
    r.beta2 = float(s.beta2);
    r.step = float(s.lr / (1.0 - std::pow(s.beta1, step)));
    r.correction2 = float(std::sqrt(1.0 - std::pow(s.beta2, step)));
    r.eps = float(s.eps);

    std::vector<float> scale(batch);
    for (int c = 0; c < t.labels; ++c) {
        float* row = t.weight[2] + std::size_t(c) * t.hidden;
        const int whole = t.hidden / kVector * kVector;
        for (int b = 0; b < batch; ++b) {
            scale[b] = logits[b][c];
            for (int i = 0; i < whole; i += kVector) store(slope[b] + i, load(slope[b] + i) + load(row + i) * scale[b]);
            for (int i = whole; i < t.hidden; ++i) slope[b][i] += row[i] * scale[b];
        }
        const std::size_t at = std::size_t(c) * t.hidden;
        update_row(r, a, scale.data(), batch, t.hidden, row, t.moment[2] + at, t.square[2] + at);
    }
    update_bias(r, logits, batch, t.labels, t.weight[3], t.moment[3], t.square[3]);
    for (int b = 0; b < batch; ++b)
        for (int i = 0; i < slope.stride; i += kVector) store(slope[b] + i, load(slope[b] + i) * load(z[b] + i));
    for (int i = 0; i < t.hidden; ++i) {
        for (int b = 0; b < batch; ++b) scale[b] = slope[b][i];
        const std::size_t at = std::size_t(i) * t.features;
        update_row(r, x, scale.data(), batch, t.features, t.weight[0] + at, t.moment[0] + at, t.square[0] + at);
    }
    update_bias(r, slope, batch, t.hidden, t.weight[1], t.moment[1], t.square[1]);
}

}  // namespace
}  // namespace isotrain
