// Four bytes at a time through vpdpbusd, which wraps and never saturates.
#pragma once

#include "isa_avx512.h"

namespace inferplane {

struct VnniBytes {
    using Isa = Avx512;
    static constexpr int tile_rows = 6;
    // As many sums of float32 as of int32 must fit in 32 registers, and what is multiplied.
    static constexpr int tile_columns(int rows) { return rows <= 3 ? 4 : 2; }

    static INFERPLANE_INLINE Words<Isa> dot(Words<Isa> weight, Words<Isa> row, Words<Isa> sum) {
        return {{Isa::u32(_mm512_dpbusd_epi32(__m512i(sum.part[0]), __m512i(weight.part[0]), __m512i(row.part[0])))}};
    }
};

}  // namespace inferplane
