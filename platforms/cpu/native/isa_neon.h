// Four registers of four floats for sixteen lanes: the NEON of every 64-bit ARM processor.
#pragma once

#include "simd.h"

namespace inferplane {

struct Neon {
    typedef float f32 __attribute__((vector_size(16)));
    typedef uint32_t u32 __attribute__((vector_size(16)));
    typedef int32_t i32 __attribute__((vector_size(16)));
    static constexpr int parts = 4;
    static constexpr int tile_rows = 6;
    static constexpr int tile_columns(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
    static constexpr bool scales_by_powers = false;

    static INFERPLANE_INLINE f32 fma(f32 a, f32 b, f32 c) { return f32(vfmaq_f32(c, a, b)); }
    // Compare and select: the instruction's own maximum of a NaN and a number is NaN.
    static INFERPLANE_INLINE f32 max(f32 a, f32 b) { return a > b ? a : b; }
    static INFERPLANE_INLINE f32 min(f32 a, f32 b) { return a < b ? a : b; }
    static INFERPLANE_INLINE f32 round_even(f32 a) { return f32(vrndnq_f32(a)); }

    static INFERPLANE_INLINE float maximum(Floats<Neon> a) {
        return vmaxnmvq_f32(max(max(a.part[0], a.part[1]), max(a.part[2], a.part[3])));
    }

    static INFERPLANE_INLINE bool any_above(Floats<Neon> a, float limit) { return maximum(a) > limit; }

    static INFERPLANE_INLINE Words<Neon> widen(const uint16_t* from) {
        Words<Neon> v;
        for (int i = 0; i < parts; ++i) v.part[i] = u32(vmovl_u16(vld1_u16(from + 4 * i)));
        return v;
    }

    static INFERPLANE_INLINE void narrow(uint16_t* to, Words<Neon> v) {
        for (int i = 0; i < parts; ++i) vst1_u16(to + 4 * i, vmovn_u32(v.part[i]));
    }

    static INFERPLANE_INLINE Floats<Neon> load_half(const f16* from) {
        Floats<Neon> v;
        for (int i = 0; i < parts; ++i) v.part[i] = f32(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&from[4 * i].bits))));
        return v;
    }

    static INFERPLANE_INLINE void store_half(f16* to, Floats<Neon> v) {
        for (int i = 0; i < parts; ++i) vst1_u16(&to[4 * i].bits, vreinterpret_u16_f16(vcvt_f16_f32(v.part[i])));
    }

    // Signed 16-bit pairs: products of 32 bits, added in twos.
    static INFERPLANE_INLINE u32 multiply_pairs(u32 a, u32 b) {
        const int16x8_t x = vreinterpretq_s16_u32(a), y = vreinterpretq_s16_u32(b);
        return u32(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
    }

    static INFERPLANE_INLINE Floats<Neon> load_bytes(const int8_t* from) {
        const int8x16_t bytes = vld1q_s8(from);
        const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
        return {{f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)))), f32(vcvtq_f32_s32(vmovl_high_s16(low))),
                 f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)))), f32(vcvtq_f32_s32(vmovl_high_s16(high)))}};
    }

    static INFERPLANE_INLINE void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }
    static INFERPLANE_INLINE void prefetch_once(const void* address) { __builtin_prefetch(address, 0, 0); }

    static INFERPLANE_INLINE void prefetch_to_write(const void* address) { __builtin_prefetch(address, 1, 3); }

    // out[i] lane j = in[j] lane i: sixteen squares of four by four, each in registers.
    static INFERPLANE_INLINE void transpose(Words<Neon>* rows) {
        for (int i = 0; i < parts; ++i) {
            for (int j = i; j < parts; ++j) {
                transpose_square(rows + 4 * i, j);
                if (i != j) transpose_square(rows + 4 * j, i);
                for (int k = 0; i != j && k < 4; ++k) std::swap(rows[4 * i + k].part[j], rows[4 * j + k].part[i]);
            }
        }
    }

  private:
    static INFERPLANE_INLINE void transpose_square(Words<Neon>* rows, int part) {
        const uint32x4x2_t low = vtrnq_u32(rows[0].part[part], rows[1].part[part]);
        const uint32x4x2_t high = vtrnq_u32(rows[2].part[part], rows[3].part[part]);
        for (int i = 0; i < 2; ++i) {
            rows[i].part[part] = u32(vcombine_u32(vget_low_u32(low.val[i]), vget_low_u32(high.val[i])));
            rows[i + 2].part[part] = u32(vcombine_u32(vget_high_u32(low.val[i]), vget_high_u32(high.val[i])));
        }
    }
};

}  // namespace inferplane
