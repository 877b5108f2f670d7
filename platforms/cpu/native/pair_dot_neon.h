// A pair of bfloat16 k per step and column through bfdot: two roundings a pair, to odd; subnormals are zero.
#pragma once

#include "isa_neon.h"
#include "tile.h"

namespace inferplane {

struct PairDotNeon {
    using Isa = Neon;
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
        for (int i = 0; i < Isa::parts; ++i) {
            const bfloat16x8_t a = vreinterpretq_bf16_u32(left.part[i]), b = vreinterpretq_bf16_u32(right.part[i]);
            sum.part[i] = Isa::f32(vbfdotq_f32(sum.part[i], a, b));
        }
        return sum;
    }
    // Sixteen and sixteen floats as thirty-two bfloat16.
    static INFERPLANE_INLINE Words<Isa> narrow(Floats<Isa> low, Floats<Isa> high) {
        Words<Isa> v;
        for (int i = 0; i < 2; ++i) {
            v.part[i] = vreinterpretq_u32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low.part[2 * i]), low.part[2 * i + 1]));
            v.part[i + 2] = vreinterpretq_u32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(high.part[2 * i]), high.part[2 * i + 1]));
        }
        return v;
    }
    // Thirty-two values of two keys -> pairs of dims 0-15 in `low`, of 16-31 in `high`.
    static INFERPLANE_INLINE void interleave(Words<Isa> even, Words<Isa> odd, Vector& low, Vector& high) {
        for (int i = 0; i < Isa::parts; ++i) {
            const uint16x8x2_t pairs = vzipq_u16(vreinterpretq_u16_u32(even.part[i]), vreinterpretq_u16_u32(odd.part[i]));
            Vector& half = i < 2 ? low : high;
            for (int j = 0; j < 2; ++j) half.part[i % 2 * 2 + j] = vreinterpretq_u32_u16(pairs.val[j]);
        }
    }
    // Sums over interleaved pairs are in the order of dims already.
    static INFERPLANE_INLINE void straighten(Floats<Isa>&, Floats<Isa>&) {}
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) { store<Isa>(to, v); }
};

}  // namespace inferplane
