// float32 functions on 16 lanes, good to about 2 float32 ulps (erf: 1.5e-7 absolute).
// Included by translation units that are compiled for AVX-512.
#pragma once

#include "../../include/intrinsics.h"

#include "common.h"

namespace isotrain {
namespace {

inline __m512 load_bf16(const bf16* source) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline void store_bf16(bf16* target, __m512 value) {
    // Round to nearest even; denormals become zero, as in every bfloat16 instruction of these processors.
    const __m256bh rounded = _mm512_cvtneps_pbh(value);
    std::memcpy(target, &rounded, sizeof rounded);
}

// 2^x. Minimax polynomial of degree 5 on [-0.5, 0.5] (relative error 8e-8), scaled by the integer part.
inline __m512 exp2_ps(__m512 x) {
    // The second operand is the result for a NaN, which stays one.
    x = _mm512_max_ps(_mm512_set1_ps(-150.0f), x);
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(1.327646713e-03f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.675541239e-03f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550713288e-02f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402211973e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931469671e-01f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.000000072e+00f));
    return _mm512_scalef_ps(p, whole);
}

// 1 / x for x in [1, inf]: the 14-bit estimate and one Newton step; 1 / inf stays 0.
inline __m512 reciprocal_ps(__m512 x) {
    const __m512 r = _mm512_rcp14_ps(x);
    const __m512 refined = _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, _mm512_set1_ps(2.0f)));
    const __mmask16 finite = _mm512_cmp_ps_mask(x, _mm512_set1_ps(3.0e38f), _CMP_LT_OQ);
    return _mm512_mask_mov_ps(r, finite, refined);
}

// 1 / (1 + 2^-x)
inline __m512 logistic2_ps(__m512 x) {
    const __m512 minus = _mm512_sub_ps(_mm512_setzero_ps(), x);
    return reciprocal_ps(_mm512_add_ps(exp2_ps(_mm512_min_ps(_mm512_set1_ps(127.0f), minus)), _mm512_set1_ps(1.0f)));
}

constexpr float kLog2e = 1.44269504088896341f;

// A value of an activation function and its derivative there.
struct Activated {
    __m512 value, slope;
};

// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), written as x / (1 + exp(-2 ...)) (Hendrycks & Gimpel 2016).
inline Activated gelu_tanh_ps(__m512 x) {
    constexpr float scale = 2.0f * 0.7978845608028654f, cubic = 0.044715f;
    const __m512 square = _mm512_mul_ps(x, x), one = _mm512_set1_ps(1.0f);
    const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(scale * kLog2e * cubic), _mm512_set1_ps(scale * kLog2e));
    const __m512 s = logistic2_ps(_mm512_mul_ps(x, inner)), value = _mm512_mul_ps(x, s);
    const __m512 rise = _mm512_fmadd_ps(square, _mm512_set1_ps(3.0f * scale * cubic), _mm512_set1_ps(scale));
    return {value, _mm512_fmadd_ps(_mm512_mul_ps(value, _mm512_sub_ps(one, s)), rise, s)};
}

// 0.5 x (1 + erf(x / sqrt 2)); erfc by Abramowitz & Stegun 7.1.26.
inline Activated gelu_erf_ps(__m512 x) {
    const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    const __m512 t = reciprocal_ps(_mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
    __m512 p = _mm512_set1_ps(1.061405429f);
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
    const __m512 power = exp2_ps(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-kLog2e)));
    const __m512 half_erfc = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(power, _mm512_set1_ps(0.5f)));
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 cdf = _mm512_mask_mov_ps(_mm512_sub_ps(_mm512_set1_ps(1.0f), half_erfc), negative, half_erfc);
    const __m512 density = _mm512_mul_ps(power, _mm512_set1_ps(0.3989422804f));
    return {_mm512_mul_ps(x, cdf), _mm512_fmadd_ps(x, density, cdf)};
}

inline Activated silu_ps(__m512 x) {
    const __m512 s = logistic2_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2e))), value = _mm512_mul_ps(x, s);
    return {value, _mm512_fmadd_ps(value, _mm512_sub_ps(_mm512_set1_ps(1.0f), s), s)};
}

inline Activated tanh_ps(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f);
    const __m512 y = _mm512_fmsub_ps(_mm512_set1_ps(2.0f), logistic2_ps(_mm512_mul_ps(x, _mm512_set1_ps(2.0f * kLog2e))),
                                     one);
    return {y, _mm512_fnmadd_ps(y, y, one)};
}

// With the operands in this order, NaN stays NaN. So does a NaN gradient where x is one.
inline Activated relu_ps(__m512 x) {
    const __m512 zero = _mm512_setzero_ps();
    return {_mm512_max_ps(zero, x),
            _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, zero, _CMP_NLE_UQ), _mm512_set1_ps(1.0f))};
}

inline Activated activate_with_slope_ps(int activation, __m512 x) {
    switch (activation) {
        case kGeluErf:
            return gelu_erf_ps(x);
        case kGeluTanh:
            return gelu_tanh_ps(x);
        case kRelu:
            return relu_ps(x);
        case kSilu:
            return silu_ps(x);
        default:
            return tanh_ps(x);
    }
}

inline __m512 activate_ps(int activation, __m512 x) { return activate_with_slope_ps(activation, x).value; }

}  // namespace
}  // namespace isotrain
