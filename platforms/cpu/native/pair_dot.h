// A pair of bfloat16 k per step and column through vdpbf16ps: two roundings a pair, subnormals are zero.
#pragma once

#include "isa_avx512.h"
#include "tile.h"

namespace inferplane {

struct PairDot {
    using Isa = Avx512;
    using Left = bf16;
    using Right = uint32_t;
    using Vector = Words<Isa>;
    static constexpr int k_per_step = 2, passes = 1;
    static constexpr int left_per_step = 2, right_per_step = panel_columns;

    static INFERPLANE_INLINE Vector zero() { return fill_words<Isa>(0); }
    static INFERPLANE_INLINE Vector as_vector(Words<Isa> words) { return words; }
    static INFERPLANE_INLINE Vector broadcast(const Left* left, int) {
        uint32_t pair;
        std::memcpy(&pair, left, sizeof pair);
        return fill_words<Isa>(pair);
    }
    static INFERPLANE_INLINE Vector load_right(const Right* right, int) { return load_words<Isa>(right); }
    static INFERPLANE_INLINE Floats<Isa> multiply(Vector left, Vector right, Floats<Isa> sum) {
        return {{Isa::f32(_mm512_dpbf16_ps(__m512(sum.part[0]), __m512bh(left.part[0]), __m512bh(right.part[0])))}};
    }
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(__m512(v.part[0]))));
    }
};

}  // namespace inferplane
