// One zmm register for sixteen lanes: AVX-512 F, BW, DQ, VL. Include inside the matching target region.
#pragma once

#include "simd.h"

namespace inferplane {

struct Avx512 {
    typedef float f32 __attribute__((vector_size(64)));
    typedef uint32_t u32 __attribute__((vector_size(64)));
    typedef int32_t i32 __attribute__((vector_size(64)));
    static constexpr int parts = 1;
    static constexpr int tile_rows = 6;
    static constexpr int tile_columns(int) { return 4; }
    static constexpr bool scales_by_powers = true;

    static INFERPLANE_INLINE f32 fma(f32 a, f32 b, f32 c) { return f32(_mm512_fmadd_ps(a, b, c)); }
    static INFERPLANE_INLINE f32 max(f32 a, f32 b) { return f32(_mm512_max_ps(a, b)); }
    static INFERPLANE_INLINE f32 min(f32 a, f32 b) { return f32(_mm512_min_ps(a, b)); }
    static INFERPLANE_INLINE f32 round_even(f32 a) { return f32(_mm512_roundscale_ps(a, 0)); }

    static INFERPLANE_INLINE f32 scale_by_power(f32 a, f32 n) { return f32(_mm512_scalef_ps(a, n)); }

    // 0 where x is less than the limit.
    static INFERPLANE_INLINE f32 scale_by_power_above(float limit, f32 x, f32 a, f32 n) {
        return f32(_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_NLT_UQ), a, n));
    }

    template <class Isa> static INFERPLANE_INLINE float maximum(Floats<Isa> a) {
        const __m512 all = a.part[0];
        __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    template <class Isa> static INFERPLANE_INLINE bool any_above(Floats<Isa> a, float limit) {
        return _mm512_cmp_ps_mask(__m512(a.part[0]), _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
    }

    static INFERPLANE_INLINE Words<Avx512> widen(const uint16_t* from) {
        return {{u32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))))}};
    }

    static INFERPLANE_INLINE void narrow(uint16_t* to, Words<Avx512> v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(__m512i(v.part[0])));
    }

    static INFERPLANE_INLINE Floats<Avx512> load_half(const f16* from) {
        return {{f32(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))))}};
    }

    static INFERPLANE_INLINE void store_half(f16* to, Floats<Avx512> v) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(v.part[0], _MM_FROUND_TO_NEAREST_INT));
    }

    // Signed 16-bit pairs: products of 32 bits, added in twos.
    static INFERPLANE_INLINE u32 multiply_pairs(u32 a, u32 b) { return u32(_mm512_madd_epi16(__m512i(a), __m512i(b))); }

    static INFERPLANE_INLINE Floats<Avx512> load_bytes(const int8_t* from) {
        return {{f32(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))))}};
    }

    static INFERPLANE_INLINE void prefetch(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T1); }
    static INFERPLANE_INLINE void prefetch_once(const void* address) { _mm_prefetch(static_cast<const char*>(address), _MM_HINT_NTA); }

    static INFERPLANE_INLINE void prefetch_to_write(const void* address) { asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(address))); }

    // Rounded to integers, which fit into bytes: the packing takes turns between the two by 128 bits. Gives their sum.
    static INFERPLANE_INLINE Words<Avx512> narrow_codes(Floats<Avx512> low, Floats<Avx512> high, int8_t* to) {
        const __m512i a = _mm512_cvtps_epi32(__m512(low.part[0])), b = _mm512_cvtps_epi32(__m512(high.part[0]));
        const __m256i turns = _mm512_cvtepi16_epi8(_mm512_packs_epi32(a, b));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(turns, _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7)));
        return {{u32(_mm512_add_epi32(a, b))}};
    }

    // out[i] lane j = in[j] lane i: 32-bit and 64-bit unpacks, then two rounds of 128-bit shuffles.
    static INFERPLANE_INLINE void transpose(Words<Avx512>* rows) {
        __m512i a[lanes], b[lanes];
        for (int i = 0; i < lanes; i += 2) {
            a[i] = _mm512_unpacklo_epi32(__m512i(rows[i].part[0]), __m512i(rows[i + 1].part[0]));
            a[i + 1] = _mm512_unpackhi_epi32(__m512i(rows[i].part[0]), __m512i(rows[i + 1].part[0]));
        }
        for (int i = 0; i < lanes; i += 4) {
            b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
            b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
            b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
            b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
        }
        for (int i = 0; i < 4; ++i) {
            a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
            a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
            a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
            a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
        }
        for (int i = 0; i < 8; ++i) {
            rows[i].part[0] = u32(_mm512_shuffle_i32x4(a[i], a[i + 8], 0x88));
            rows[i + 8].part[0] = u32(_mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd));
        }
    }
};

}  // namespace inferplane
