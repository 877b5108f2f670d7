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
    // Sixteen and sixteen floats as thirty-two bfloat16.
    static INFERPLANE_INLINE Words<Isa> narrow(Floats<Isa> low, Floats<Isa> high) {
        return {{Isa::u32(__m512i(_mm512_cvtne2ps_pbh(__m512(high.part[0]), __m512(low.part[0]))))}};
    }
    // Thirty-two values of two keys -> pairs of dims 0-3, 8-11, 16-19, 24-27 in `low`, of the others in `high`.
    static INFERPLANE_INLINE void interleave(Words<Isa> even, Words<Isa> odd, Vector& low, Vector& high) {
        low.part[0] = Isa::u32(_mm512_unpacklo_epi16(__m512i(even.part[0]), __m512i(odd.part[0])));
        high.part[0] = Isa::u32(_mm512_unpackhi_epi16(__m512i(even.part[0]), __m512i(odd.part[0])));
    }
    // Sums over interleaved pairs, in the order of dims again.
    static INFERPLANE_INLINE void straighten(Floats<Isa>& low, Floats<Isa>& high) {
        const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
        const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        const __m512 a = __m512(low.part[0]), b = __m512(high.part[0]);
        low.part[0] = Isa::f32(_mm512_permutex2var_ps(a, first, b));
        high.part[0] = Isa::f32(_mm512_permutex2var_ps(a, second, b));
    }
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __m256i(_mm512_cvtneps_pbh(__m512(v.part[0]))));
    }
};

}  // namespace inferplane
