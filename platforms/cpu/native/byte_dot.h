// Four unsigned bytes of a weight times four signed bytes of a row, added to an int32 lane: exact on every instruction set.
#pragma once

#include "simd.h"

namespace inferplane {

// Through 16-bit pairs: an unsigned byte times a signed one would saturate in vpmaddubsw.
template <class Isa_> struct PairedBytes {
    using Isa = Isa_;
    typedef int16_t i16 __attribute__((vector_size(sizeof(typename Isa::u32))));
    static constexpr int tile_rows = 2;
    static constexpr int tile_columns(int) { return 2; }

    static INFERPLANE_INLINE Words<Isa> dot(Words<Isa> weight, Words<Isa> row, Words<Isa> sum) {
        const Words<Isa> low = fill_words<Isa>(0x00ff00ff);
        const Words<Isa> even = weight & low, odd = shift_right(weight, 8) & low;
        for (int i = 0; i < Isa::parts; ++i) {
            const i16 pairs = i16(row.part[i]);
            sum.part[i] += Isa::multiply_pairs(even.part[i], typename Isa::u32((pairs << 8) >> 8));
            sum.part[i] += Isa::multiply_pairs(odd.part[i], typename Isa::u32(pairs >> 8));
        }
        return sum;
    }
};

}  // namespace inferplane
