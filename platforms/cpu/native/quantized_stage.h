// Rows of x become int8 codes on the way into the kernel's own order: one contiguous stream for each block of k.
//
//   codes    [block of k][tile of rows][64 k][row of the tile][64]    a line for each row, then the next 64 k
//   pieces   [block of k][tile of rows][piece][row of the tile]
#pragma once

#include "linear_kernel.h"
#include "quantized.h"

namespace inferplane {

// Whether an Isa makes codes of two vectors at once.
template <class Isa, class = void> constexpr bool narrows_codes = false;
template <class Isa> constexpr bool narrows_codes<Isa, decltype(void(&Isa::narrow_codes))> = true;

template <class Isa> INFERPLANE_INLINE void store_bytes(int8_t* to, Words<Isa> v) {
    typedef int8_t bytes __attribute__((vector_size(sizeof(typename Isa::u32) / 4)));
    for (int i = 0; i < Isa::parts; ++i) {
        const bytes narrow = __builtin_convertvector(typename Isa::i32(v.part[i]), bytes);
        __builtin_memcpy(to + sizeof narrow * i, &narrow, sizeof narrow);
    }
}

// Halves are folded in registers.
template <class Isa> INFERPLANE_INLINE int32_t sum(Words<Isa> a) {
    typedef int32_t eight __attribute__((vector_size(32)));
    typedef int32_t four __attribute__((vector_size(16)));
    eight half[2];
    std::memcpy(half, &a, sizeof half);
    half[0] += half[1];
    four quarter[2];
    std::memcpy(quarter, half, sizeof quarter);
    quarter[0] += quarter[1];
    return quarter[0][0] + quarter[0][1] + (quarter[0][2] + quarter[0][3]);
}

// The largest magnitude; infinity where there is an infinity or NaN, as bits order all of them.
template <class Isa, class T> INFERPLANE_INLINE float largest_magnitude(const T* x, int64_t count) {
    const Words<Isa> magnitude = fill_words<Isa>(0x7fffffff), infinity = fill_words<Isa>(0x7f800000);
    Words<Isa> most = fill_words<Isa>(0), other = most;
    const auto take = [&](Words<Isa>& into, Floats<Isa> v) {
        const Words<Isa> bits = as_words(v) & magnitude;
        into = where_less(into, bits, bits, into);
    };
    int64_t k = 0;
    for (; k + 2 * lanes <= count; k += 2 * lanes) {
        take(most, load<Isa>(x + k));
        take(other, load<Isa>(x + k + lanes));
    }
    for (; k < count; k += lanes) take(most, load_upto<Isa>(x + k, count - k));
    most = where_less(most, other, other, most);
    return maximum(as_floats(where_less(most, infinity, most, infinity)));
}

// As above; magnitudes of bfloat16 are ordered as their bits are, and need not be widened.
template <class Isa> INFERPLANE_INLINE float largest_magnitude(const bf16* x, int64_t count) {
    typedef uint16_t halves __attribute__((vector_size(sizeof(typename Isa::u32))));
    const Words<Isa> magnitude = fill_words<Isa>(0x7fff7fff);
    Words<Isa> words = fill_words<Isa>(0);
    int64_t k = 0;
    for (; k + 2 * lanes <= count; k += 2 * lanes) {
        const Words<Isa> bits = load_words<Isa>(x + k) & magnitude;
        for (int i = 0; i < Isa::parts; ++i) {
            const halves a = halves(bits.part[i]), b = halves(words.part[i]);
            words.part[i] = typename Isa::u32(a > b ? a : b);
        }
    }
    const Words<Isa> even = shift_left(words, 16), odd = words & fill_words<Isa>(0xffff0000);
    words = where_less(even, odd, odd, even);
    for (; k < count; k += lanes) {
        const Words<Isa> bits = as_words(load_upto<Isa>(x + k, count - k)) & fill_words<Isa>(0x7fffffff);
        words = where_less(words, bits, bits, words);
    }
    const Words<Isa> infinity = fill_words<Isa>(0x7f800000);
    return maximum(as_floats(where_less(words, infinity, words, infinity)));
}

// Codes of two vectors; the sum of both.
template <class Isa> INFERPLANE_INLINE Words<Isa> stage_pair(Floats<Isa> low, Floats<Isa> high, int8_t* codes) {
    if constexpr (narrows_codes<Isa>) return Isa::narrow_codes(low, high, codes);
    const Words<Isa> first = to_integers(round_even(low)), second = to_integers(round_even(high));
    store_bytes<Isa>(codes, first);
    store_bytes<Isa>(codes + lanes, second);
    return first + second;
}

template <class Isa> INFERPLANE_INLINE Words<Isa> stage_vector(Floats<Isa> x, float inverse, int8_t* codes) {
    const Words<Isa> made = to_integers(round_even(x * fill<Isa>(inverse)));
    store_bytes<Isa>(codes, made);
    return made;
}

// Codes of `count` values, zeros behind them up to a vector; the sum of the codes.
template <class Isa, class T> INFERPLANE_INLINE int32_t stage_piece(const T* x, int64_t count, float inverse, int8_t* codes) {
    Words<Isa> total = fill_words<Isa>(0);
    const Floats<Isa> factor = fill<Isa>(inverse);
    int64_t k = 0;
    for (; k + 2 * lanes <= count; k += 2 * lanes) {
        total = total + stage_pair(load<Isa>(x + k) * factor, load<Isa>(x + k + lanes) * factor, codes + k);
    }
    for (; k + lanes <= count; k += lanes) total = total + stage_vector(load<Isa>(x + k), inverse, codes + k);
    if (k < count) total = total + stage_vector(load_first<Isa>(x + k, count - k), inverse, codes + k);
    return sum(total);
}

// From a row of codes to its lines among those of its tile, block by block.
INFERPLANE_INLINE void place_codes(const QuantizedJob& job, const RowsOfTile& tile, int64_t row, const int8_t* codes) {
    const int64_t block = job.block_steps * k_per_word, bytes = job.block_bytes();
    int8_t* to = static_cast<int8_t*>(job.left) + tile.first * bytes + (row - tile.first) * cache_line_bytes;
    for (int64_t start = 0; start < job.inputs; start += block, to += job.slab * bytes) {
        const int64_t count = job.inputs - start < block ? job.inputs - start : block;
        for (int64_t k = 0; k < count; k += cache_line_bytes) __builtin_memcpy(to + k * tile.rows, codes + start + k, cache_line_bytes);
    }
}

// As ops.quantize.quantized_rows does it, operation by operation.
template <class Isa, class T> void stage_codes(const QuantizedJob& job, int64_t first, int64_t last) {
    static thread_local Scratch scratch;
    constexpr float limit = 127.0f;
    const int64_t inputs = job.inputs, piece = job.piece_steps * k_per_word, group = job.activation_group ? job.activation_group : inputs;
    const int64_t block_pieces = job.block_pieces();
    const RowTiles tiles = job.tiles();
    const int32_t offset = job.layout.zeros ? 1 : job.layout.offset();
    const bool in_pairs = job.layout.bits == 4 && !job.layout.zeros && !job.as_bytes;
    const int32_t even = -offset * (in_pairs ? 17 : 1), odd = -offset * (in_pairs ? 16 : 1);
    int8_t* const codes = scratch.get<int8_t>(round_up(inputs, cache_line_bytes) + cache_line_bytes);
    for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(job.x) + (job.first_row + row) * inputs;
        const RowsOfTile tile = tiles.of_row(row);
        PieceOfRow* made = job.pieces + tile.first * block_pieces + row - tile.first;
        int64_t in_block = 0;
        for (int64_t start = 0; start < inputs; start += group) {
            const int64_t stop = inputs - start < group ? inputs : start + group;
            const float most = largest_magnitude<Isa>(x + start, stop - start);
            const bool finite = most < __builtin_inff();
            const float inverse = most > 0 && limit / most < __builtin_inff() ? limit / most : 0.0f;
            for (int64_t k = start; k < stop; k += piece) {
                const int64_t count = stop - k < piece ? stop - k : piece;
                if (finite) {
                    const int32_t total = stage_piece<Isa>(x + k, count, inverse, codes + k);
                    *made = {most / limit, {even * total, odd * total}};
                } else {
                    std::memset(codes + k, 0, round_up(count, k_per_word));
                    *made = {__builtin_nanf(""), {0, 0}};
                }
                // The next of this block, or the first of the next block.
                if (++in_block < block_pieces) made += tile.rows;
                else made += job.slab * block_pieces - (in_block - 1) * tile.rows, in_block = 0;
            }
        }
        place_codes(job, tile, row, codes);
    }
}

}  // namespace inferplane
