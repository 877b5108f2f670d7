// Two ymm registers for sixteen lanes: AVX2, FMA and F16C. Include inside the matching target region.
#pragma once

#include "simd.h"

namespace inferplane {

struct Avx2 {
    typedef float f32 __attribute__((vector_size(32)));
    typedef uint32_t u32 __attribute__((vector_size(32)));
    typedef int32_t i32 __attribute__((vector_size(32)));
    static constexpr int parts = 2;
    static constexpr int tile_rows = 6;
    static constexpr int tile_columns(int rows) { return rows == 1 ? 4 : rows < 4 ? 2 : 1; }
    static constexpr bool scales_by_powers = false;

    static INFERPLANE_INLINE f32 fma(f32 a, f32 b, f32 c) { return f32(_mm256_fmadd_ps(a, b, c)); }
    static INFERPLANE_INLINE f32 max(f32 a, f32 b) { return f32(_mm256_max_ps(a, b)); }
    static INFERPLANE_INLINE f32 min(f32 a, f32 b) { return f32(_mm256_min_ps(a, b)); }
    static INFERPLANE_INLINE f32 round_even(f32 a) {
        return f32(_mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static INFERPLANE_INLINE float maximum(Floats<Avx2> a) {
        const __m256 eight = _mm256_max_ps(a.part[0], a.part[1]);
        __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
    }

    static INFERPLANE_INLINE bool any_above(Floats<Avx2> a, float limit) { return maximum(a) > limit; }

    static INFERPLANE_INLINE Words<Avx2> widen(const uint16_t* from) {
        Words<Avx2> v;
        for (int i = 0; i < 2; ++i) {
            v.part[i] = u32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * i))));
        }
        return v;
    }

    static INFERPLANE_INLINE void narrow(uint16_t* to, Words<Avx2> v) {
        const __m256i packed = _mm256_packus_epi32(__m256i(v.part[0]), __m256i(v.part[1]));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
    }

    static INFERPLANE_INLINE Floats<Avx2> load_half(const f16* from) {
        Floats<Avx2> v;
        for (int i = 0; i < 2; ++i) {
            v.part[i] = f32(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8 * i))));
        }
        return v;
    }

    static INFERPLANE_INLINE void store_half(f16* to, Floats<Avx2> v) {
        for (int i = 0; i < 2; ++i) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 8 * i),
                             _mm256_cvtps_ph(v.part[i], _MM_FROUND_TO_NEAREST_INT));
        }
    }

    // Signed 16-bit pairs: products of 32 bits, added in twos.
    static INFERPLANE_INLINE u32 multiply_pairs(u32 a, u32 b) { return u32(_mm256_madd_epi16(__m256i(a), __m256i(b))); }

    static INFERPLANE_INLINE Floats<Avx2> load_bytes(const int8_t* from) {
        Floats<Avx2> v;
        for (int i = 0; i < 2; ++i) {
            v.part[i] = f32(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8 * i)))));
        }
        return v;
    }

    static INFERPLANE_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }
    static INFERPLANE_INLINE void prefetch_once(const void* address) { __builtin_prefetch(address, 0, 0); }

    static INFERPLANE_INLINE void prefetch_to_write(const void* address) { __builtin_prefetch(address, 1, 3); }

    // Through memory: the loads of a column are cheap beside the float arithmetic of this path.
    static INFERPLANE_INLINE void transpose(Words<Avx2>* rows) {
        alignas(64) uint32_t flat[lanes][lanes], turned[lanes][lanes];
        std::memcpy(flat, rows, sizeof flat);
        for (int i = 0; i < lanes; ++i) {
            for (int j = 0; j < lanes; ++j) turned[i][j] = flat[j][i];
        }
        std::memcpy(rows, turned, sizeof flat);
    }
};

}  // namespace inferplane
