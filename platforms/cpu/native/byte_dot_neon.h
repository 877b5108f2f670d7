// Four bytes at a time through usdot, which wraps and never saturates.
#pragma once

#include "isa_neon.h"

namespace inferplane {

struct NeonBytes {
    using Isa = Neon;
    static constexpr int tile_rows = 2;
    static constexpr int tile_columns(int) { return 2; }

    static INFERPLANE_INLINE Words<Isa> dot(Words<Isa> weight, Words<Isa> row, Words<Isa> sum) {
        for (int i = 0; i < Isa::parts; ++i) {
            const uint8x16_t codes = vreinterpretq_u8_u32(weight.part[i]);
            const int8x16_t x = vreinterpretq_s8_u32(row.part[i]);
            sum.part[i] = Isa::u32(vusdotq_s32(vreinterpretq_s32_u32(sum.part[i]), codes, x));
        }
        return sum;
    }
};

}  // namespace inferplane
