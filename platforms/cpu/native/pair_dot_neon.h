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
    static INFERPLANE_INLINE void store_left(Left* to, Floats<Isa> v) { store<Isa>(to, v); }
};

}  // namespace inferplane
