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
        bf16 made[2 * lanes];
        store<Isa>(made, low);
        store<Isa>(made + lanes, high);
        return load_words<Isa>(made);
    }
    // Thirty-two values of two keys -> pairs of dims 0-3, 8-11, 16-19, 24-27 in `low`, of the others in `high`.
    static INFERPLANE_INLINE void interleave(Words<Isa> even, Words<Isa> odd, Vector& low, Vector& high) {
        for (int i = 0; i < Isa::parts; ++i) {
            const uint16x8_t a = vreinterpretq_u16_u32(even.part[i]), b = vreinterpretq_u16_u32(odd.part[i]);
            low.part[i] = Isa::u32(vzip1q_u16(a, b));
            high.part[i] = Isa::u32(vzip2q_u16(a, b));
        }
    }
    // Sums over interleaved pairs, in the order of dims again.
    static INFERPLANE_INLINE void straighten(Floats<Isa>& low, Floats<Isa>& high) {
        const Floats<Isa> a = low, b = high;
        low = {{a.part[0], b.part[0], a.part[1], b.part[1]}};
        high = {{a.part[2], b.part[2], a.part[3], b.part[3]}};
    }
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) { store<Isa>(to, v); }
};

}  // namespace inferplane
