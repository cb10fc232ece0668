// The C interface: packing, threads, and the choice of an instruction set.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "engine.h"

using namespace isotrain_tt;

namespace {

constexpr int kInterface = 2;

// Every vector's data on its own cache lines.
template <class T>
class Lines {
  public:
    explicit Lines(std::size_t count) : store_(count * sizeof(T) + 64) {
        const auto at = reinterpret_cast<std::uintptr_t>(store_.data());
        data_ = reinterpret_cast<T*>((at + 63) & ~std::uintptr_t{63});
    }
    T* data() { return data_; }

  private:
    std::vector<unsigned char> store_;
    T* data_;
};

struct Fields {
    int exponent, mantissa, sign;
};

// Exponent (kZero for 0 and denormals), 11-bit mantissa, sign (0 or -1) of a float32's bits; TF32 by truncation.
inline Fields fields(std::uint32_t bits) {
    const int exponent = static_cast<int>(bits >> 23 & 255);
    if (!exponent) return {kZero, 0, bits >> 31 ? -1 : 0};
    return {exponent, static_cast<int>(1024 | (bits >> 13 & 1023)), bits >> 31 ? -1 : 0};
}

inline std::uint32_t twice(int value) {
    const auto half = static_cast<std::uint32_t>(value) & 0xFFFFu;
    return half << 16 | half;
}

class PackedPanel {
  public:
    explicit PackedPanel(int k)
        : high_(std::size_t(k) * kPanel), low_(std::size_t(k) * kPanel), exponent_(std::size_t(k) * kPanel),
          sign_(std::size_t(k) * kPanel), signs_(std::size_t(k) / kGroup * kPanel) {
        panel = {{high_.data(), low_.data()}, exponent_.data(), sign_.data(), signs_.data()};
    }

    // Columns [0, columns) of in1 from `source`, rows padded to k_padded and columns to kPanel with zeros.
    void fill(const std::uint32_t* source, std::int64_t stride, int k, int k_padded, int columns) {
        std::memset(panel.signs, 0, sizeof(std::int16_t) * std::size_t(k_padded) / kGroup * kPanel);
        for (int i = 0; i < k_padded; ++i) {
            for (int j = 0; j < kPanel; ++j) {
                const bool real = i < k && j < columns;
                const Fields f = fields(real ? source[i * stride + j] : 0);
                const int at = i * kPanel + j;
                panel.part[0][at] = static_cast<std::int16_t>(f.mantissa >> 6 << 1);
                panel.part[1][at] = static_cast<std::int16_t>((f.mantissa >> 1 & 31) << 1);
                panel.exponent[at] = static_cast<std::int16_t>(f.exponent);
                panel.sign[at] = static_cast<std::int16_t>(f.sign);
                panel.signs[i / kGroup * kPanel + j] |= static_cast<std::int16_t>((f.sign & 1) << (i % kGroup));
            }
        }
    }

    Panel panel;

  private:
    Lines<std::int16_t> high_, low_, exponent_, sign_, signs_;
};

class PackedRows {
  public:
    PackedRows(const std::uint32_t* source, std::int64_t stride, int m, int k, int k_padded)
        : high_(std::size_t(m) * k_padded), low_(std::size_t(m) * k_padded), exponent_(std::size_t(m) * k_padded),
          sign_(std::size_t(m) * k_padded), signs_(std::size_t(m) * k_padded / kGroup), rows(m) {
        for (int i = 0; i < m; ++i) {
            const std::size_t at = std::size_t(i) * k_padded;
            rows[i] = {{high_.data() + at, low_.data() + at}, exponent_.data() + at, sign_.data() + at,
                       signs_.data() + at / kGroup};
            for (int j = 0; j < k_padded; ++j) {
                const Fields f = fields(j < k ? source[i * stride + j] : 0);
                rows[i].part[0][j] = twice(f.mantissa >> 4);
                rows[i].part[1][j] = twice((f.mantissa & 15) << 3);
                rows[i].exponent[j] = twice(f.exponent);
                rows[i].sign[j] = twice(f.sign);
                if (j % kGroup == 0) rows[i].signs[j / kGroup] = 0;
                rows[i].signs[j / kGroup] |= static_cast<std::uint32_t>(f.sign & 1) * 0x10001u << (j % kGroup);
            }
        }
    }

  private:
    Lines<std::uint32_t> high_, low_, exponent_, sign_, signs_;

  public:
    std::vector<Row> rows;
};

const Engine* engine_called(const char* name) {
    const bool any = !name || !*name;
    const Engine* const fastest_first[] = {
#if defined(__x86_64__)
        avx512_engine(), avx2_engine(),
#endif
        portable_engine()};
    for (const Engine* engine : fastest_first)
        if (engine->available() && (any || !std::strcmp(name, engine->name))) return engine;
    return nullptr;
}

// All rows times one panel. Dst is copied in and out if the matrix's edge cuts the panel.
void multiply_panel(const Engine& engine, PackedRows& in0, const Panel& panel, int k, const Rules& rules,
                    std::uint32_t* dst, std::int64_t stride, int columns, int begin, int end) {
    alignas(64) std::uint32_t block[kRows][kPanel];
    for (int row = begin; row < end; row += kRows) {
        const int count = std::min(kRows, end - row);
        std::uint32_t* out[kRows];
        for (int i = 0; i < count; ++i) {
            std::memset(block[i], 0, sizeof(block[i]));
            std::memcpy(block[i], dst + (row + i) * stride, sizeof(std::uint32_t) * std::size_t(columns));
            out[i] = block[i];
        }
        engine.multiply(in0.rows.data() + row, count, panel, k, rules, out);
        for (int i = 0; i < count; ++i)
            std::memcpy(dst + (row + i) * stride, block[i], sizeof(std::uint32_t) * std::size_t(columns));
    }
}

}  // namespace

extern "C" {

int isotrain_tt_interface() { return kInterface; }

// The instruction set that `name` selects (null or "": the best one), or null if there is none.
const char* isotrain_tt_engine(const char* name) {
    const Engine* engine = engine_called(name);
    return engine ? engine->name : nullptr;
}

// dst += in0 [m, k] @ in1 [k, n] in the matrix unit's arithmetic; all are bit patterns of float32, rows `..._stride`
// elements apart. phases: 1 (LoFi) to 4 (HiFi4). Returns 0; 1 for an unknown engine; 2 if memory runs out.
int isotrain_tt_matmul(const std::uint32_t* in0, std::int64_t in0_stride, const std::uint32_t* in1,
                       std::int64_t in1_stride, std::uint32_t* dst, std::int64_t dst_stride, int m, int k, int n,
                       int phases, int fp32_dest, int wormhole, int threads, const char* name) {
    const Engine* engine = engine_called(name);
    if (!engine) return 1;
    if (m < 1 || n < 1 || k < 1) return 0;
    try {
        const Rules rules{phases, fp32_dest != 0, wormhole != 0};
        const int k_padded = (k + kTile - 1) / kTile * kTile;
        const int panels = (n + kPanel - 1) / kPanel;
        PackedRows rows(in0, in0_stride, m, k, k_padded);
        std::atomic<int> next{0};
        std::atomic<bool> failed{false};
        const auto work = [&]() {
            try {
                PackedPanel packed(k_padded);
                for (int p = next++; p < panels; p = next++) {
                    const int columns = std::min(kPanel, n - p * kPanel);
                    packed.fill(in1 + std::int64_t(p) * kPanel, in1_stride, k, k_padded, columns);
                    multiply_panel(*engine, rows, packed.panel, k_padded, rules, dst + std::int64_t(p) * kPanel,
                                   dst_stride, columns, 0, m);
                }
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        };
        std::vector<std::thread> others;
        for (int i = 1; i < std::min(threads, panels); ++i) others.emplace_back(work);
        work();
        for (auto& other : others) other.join();
        return failed ? 2 : 0;
    } catch (const std::bad_alloc&) {
        return 2;
    }
}

// out[i] = a[i] op b[i] for count bit patterns; operation: 0 add, 1 subtract, 2 multiply (in `phases` phases, a in
// SrcA). Returns 0, or 1 for an unknown engine.
int isotrain_tt_elementwise(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* out, std::int64_t count,
                            int operation, int phases, int fp32_dest, int wormhole, const char* name) {
    const Engine* engine = engine_called(name);
    if (!engine) return 1;
    const Rules rules{phases, fp32_dest != 0, wormhole != 0};
    const auto chosen = static_cast<Operation>(operation);
    std::int64_t at = 0;
    for (; at + kPanel <= count; at += kPanel) engine->elementwise(a + at, b + at, out + at, chosen, rules);
    if (at < count) {
        std::uint32_t x[kPanel] = {}, y[kPanel] = {}, z[kPanel];
        const std::size_t bytes = sizeof(std::uint32_t) * static_cast<std::size_t>(count - at);
        std::memcpy(x, a + at, bytes);
        std::memcpy(y, b + at, bytes);
        engine->elementwise(x, y, z, chosen, rules);
        std::memcpy(out + at, z, bytes);
    }
    return 0;
}

}  // extern "C"
