// Registers of 16 bytes through the compiler's own vectors: SSE2, NEON, or whatever the target has.
#pragma once

#include <cmath>

#include "simd.h"

namespace inferplane {

struct Portable {
    typedef float f32 __attribute__((vector_size(16)));
    typedef uint32_t u32 __attribute__((vector_size(16)));
    typedef int32_t i32 __attribute__((vector_size(16)));
    static constexpr int parts = 4;
    static constexpr int tile_rows = 3;
    static constexpr int tile_columns(int rows) { return rows == 1 ? 2 : 1; }
    static constexpr bool scales_by_powers = false;

    static INFERPLANE_INLINE f32 fma(f32 a, f32 b, f32 c) { return a * b + c; }
    static INFERPLANE_INLINE f32 max(f32 a, f32 b) { return a > b ? a : b; }
    static INFERPLANE_INLINE f32 min(f32 a, f32 b) { return a < b ? a : b; }

    // Adding 1.5 * 2^23 leaves no bits below one; magnitudes from 2^22 on are whole for our uses.
    static INFERPLANE_INLINE f32 round_even(f32 a) {
        const f32 magic = f32{} + 12582912.0f;
        // Else a compiler with multiply-add fuses the product that `a` may be into the sum: one rounding instead of two.
#if defined(__aarch64__)
        asm("" : "+w"(a));
#elif defined(__x86_64__)
        asm("" : "+x"(a));
#else
        asm("" : "+m"(a));
#endif
        return (a + magic) - magic;
    }

    static INFERPLANE_INLINE float maximum(Floats<Portable> a) {
        float best = a.part[0][0];
        for (int i = 1; i < lanes; ++i) best = a.part[i / 4][i % 4] > best ? a.part[i / 4][i % 4] : best;
        return best;
    }

    static INFERPLANE_INLINE bool any_above(Floats<Portable> a, float limit) { return maximum(a) > limit; }

    static INFERPLANE_INLINE Words<Portable> widen(const uint16_t* from) {
        Words<Portable> v;
        for (int i = 0; i < lanes; ++i) v.part[i / 4][i % 4] = from[i];
        return v;
    }

    static INFERPLANE_INLINE void narrow(uint16_t* to, Words<Portable> v) {
        for (int i = 0; i < lanes; ++i) to[i] = uint16_t(v.part[i / 4][i % 4]);
    }

    static INFERPLANE_INLINE Floats<Portable> load_half(const f16* from) {
        Floats<Portable> v;
        for (int i = 0; i < lanes; ++i) v.part[i / 4][i % 4] = to_float(from[i]);
        return v;
    }

    static INFERPLANE_INLINE void store_half(f16* to, Floats<Portable> v) {
        for (int i = 0; i < lanes; ++i) to[i] = from_float<f16>(v.part[i / 4][i % 4]);
    }

    // Signed 16-bit pairs: products of 32 bits, added in twos.
    static INFERPLANE_INLINE u32 multiply_pairs(u32 a, u32 b) {
        const i32 x = i32(a), y = i32(b);
        return u32(((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16));
    }

    static INFERPLANE_INLINE Floats<Portable> load_bytes(const int8_t* from) {
        Floats<Portable> v;
        for (int i = 0; i < lanes; ++i) v.part[i / 4][i % 4] = from[i];
        return v;
    }

    static INFERPLANE_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }
    static INFERPLANE_INLINE void prefetch_once(const void* address) { __builtin_prefetch(address, 0, 0); }

    static INFERPLANE_INLINE void prefetch_to_write(const void* address) { __builtin_prefetch(address, 1, 3); }

    // out[i] lane j = in[j] lane i
    static INFERPLANE_INLINE void transpose(Words<Portable>* rows) {
        uint32_t flat[lanes][lanes];
        std::memcpy(flat, rows, sizeof flat);
        for (int i = 0; i < lanes; ++i) {
            for (int j = 0; j < lanes; ++j) rows[i].part[j / 4][j % 4] = flat[j][i];
        }
    }
};

}  // namespace inferplane
