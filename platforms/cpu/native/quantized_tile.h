// One tile of the quantized linear over rows of codes: rows x columns sums of float32, and as many of int32, stay in registers.
//
//   for each piece of k   int32 += four codes of a weight * four codes of a row    (from the correction for unsigned codes)
//                         sums  += float(int32) * weight scale * row scale
//
// Two columns of int4 share a byte, low + 16 high, and no shift parts them: the byte and its high nibble are multiplied
// as they are, and int32 sums of the one less those of the other are the low column's. The high column's are 16 times
// what they stand for, which its scales make up for.
#pragma once

#include "quantized_stage.h"

namespace inferplane {

template <class Isa> INFERPLANE_INLINE Words<Isa> load_bytes(const uint8_t* from) {
    typedef uint8_t bytes __attribute__((vector_size(sizeof(typename Isa::u32) / 4)));
    Words<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) {
        bytes narrow;
        __builtin_memcpy(&narrow, from + sizeof narrow * i, sizeof narrow);
        v.part[i] = __builtin_convertvector(narrow, typename Isa::u32);
    }
    return v;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> load_scales(const char* header, DType type, int column) {
    switch (type) {
        case DType::float32: return load<Isa>(reinterpret_cast<const float*>(header) + lanes * column);
        case DType::bfloat16: return load<Isa>(reinterpret_cast<const bf16*>(header) + lanes * column);
        default: return load<Isa>(reinterpret_cast<const f16*>(header) + lanes * column);
    }
}

// What a column's sum of products is multiplied by: sums of high nibbles are 16 times as large.
template <class Isa> INFERPLANE_INLINE Floats<Isa> scales_of_sums(const QuantizedLayout& layout, const char* header, int column) {
    const Floats<Isa> scales = load_scales<Isa>(header, layout.scales, column);
    return layout.bits == 4 && column % 2 ? scales * fill<Isa>(1.0f / 16) : scales;
}

// Zero points as they enter a column's sum: those of the high nibbles do so 16-fold, and in the low column's sum, too.
template <class Isa> INFERPLANE_INLINE Words<Isa> zeros_of_sums(const QuantizedLayout& layout, const char* header, int column) {
    const uint8_t* zeros = reinterpret_cast<const uint8_t*>(header) + 64 * item_bytes(layout.scales);
    const Words<Isa> own = load_bytes<Isa>(zeros + lanes * column);
    if (layout.bits == 8) return own;
    const Words<Isa> high = shift_left(load_bytes<Isa>(zeros + lanes * (column | 1)), 4);
    return column % 2 ? high : own + high;
}

// Pieces of a panel, and the rows that meet them.
struct QuantizedTile {
    const QuantizedLayout* layout;
    bool scaled;        // or outputs are scaled at the end
    const char* codes;  // of the first piece
    int64_t in_group, group_steps, header_bytes;  // steps of its group that lie before the first piece
    int64_t steps, piece_steps;
    const int8_t* left;        // [steps / 16][rows][64], from the first piece's k
    const PieceOfRow* pieces;  // [pieces][rows]
    float* sums;               // [rows, 64]
    bool resume;               // or start from zeros
};

template <class Isa, int bits, int columns> INFERPLANE_INLINE void load_codes(const char* codes, Words<Isa> (&weight)[columns]) {
    if constexpr (bits == 8) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) weight[j] = load_words<Isa>(codes + 64 * j);
    } else {
        const Words<Isa> high = fill_words<Isa>(0xf0f0f0f0);
#pragma GCC unroll 8
        for (int j = 0; j < columns; j += 2) {
            weight[j] = load_words<Isa>(codes + 32 * j);
            weight[j + 1] = weight[j] & high;
        }
    }
}

template <class D, int bits, int rows, int columns>
INFERPLANE_INLINE void codes_step(const char* codes, const int8_t* left, Words<typename D::Isa> (&acc)[rows][columns]) {
    using Isa = typename D::Isa;
    Words<Isa> weight[columns];
    load_codes<Isa, bits>(codes, weight);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        uint32_t four;
        std::memcpy(&four, left + r * cache_line_bytes, sizeof four);
        const Words<Isa> row = fill_words<Isa>(four);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) acc[r][j] = D::dot(weight[j], row, acc[r][j]);
        // Loads stay where they are: the compiler would hoist them, and spill sums to make room.
        asm volatile("" ::: "memory");
    }
}

// Unsigned codes carry an offset, and perhaps a zero point: sums start with the correction for it.
template <class Isa, int bits, int rows, int columns>
INFERPLANE_INLINE void start_piece(const PieceOfRow* piece, const Words<Isa>* zeros, Words<Isa> (&acc)[rows][columns]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const Words<Isa> even = fill_words<Isa>(uint32_t(piece[r].correction[0]));
        const Words<Isa> odd = bits == 8 ? even : fill_words<Isa>(uint32_t(piece[r].correction[1]));
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            acc[r][j] = j % 2 ? odd : even;
            if (zeros) acc[r][j] = acc[r][j] * zeros[j];
        }
    }
}

template <class Isa, int bits, int rows, int columns>
INFERPLANE_INLINE void finish_piece(const PieceOfRow* piece, const Floats<Isa>* scales, Words<Isa> (&acc)[rows][columns],
                                    Floats<Isa> (&sums)[rows][columns]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const Floats<Isa> of_row = fill<Isa>(piece[r].scale);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            if (bits == 4 && j % 2 == 0) acc[r][j] = acc[r][j] - acc[r][j + 1];
            Floats<Isa> v = from_integers(acc[r][j]);
            if (scales) v = v * scales[j];
            sums[r][j] = multiply_add(v, of_row, sums[r][j]);
        }
    }
}

// Lines of the block that comes next: fetched a few at a time, evenly, while this block is multiplied. Or, see Prefetch, its own.
struct FetchAhead {
    const char *next, *stop;
    int lines;  // per prefetch_steps
    Fetch fetch;
};

template <class D, int bits, int rows, int columns, Fetch fetch>
__attribute__((noinline)) void codes_tile(const QuantizedTile& whole, int column, FetchAhead& ahead) {
    using Isa = typename D::Isa;
    const QuantizedTile t = whole;  // a copy, which no store can alias
    const QuantizedLayout& layout = *t.layout;
    constexpr bool streams = fetch != Fetch::next_block;
    const int fetched_lines = ahead.next < ahead.stop ? ahead.lines : 0;
    const char* next = ahead.next;
    constexpr int64_t step_bytes = bits * 32, line_steps = cache_line_bytes / k_per_word;
    float* const out = t.sums + lanes * column;
    const char* codes = t.codes + bits * 8 * column;
    const char* header = t.codes - t.in_group * step_bytes - t.header_bytes;
    const int8_t* left = t.left;
    const PieceOfRow* piece = t.pieces;
    int64_t group_left = t.group_steps - t.in_group, line_left = line_steps;
    Floats<Isa> sums[rows][columns];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) sums[r][j] = t.resume ? load<Isa>(out + r * panel_columns + lanes * j) : fill<Isa>(0.0f);
    }
    for (int64_t done = 0; done < t.steps; done += t.piece_steps, piece += rows) {
        const int64_t steps = t.steps - done < t.piece_steps ? t.steps - done : t.piece_steps;
        Words<Isa> acc[rows][columns], zeros[columns];
        if (layout.zeros) {
#pragma GCC unroll 8
            for (int j = 0; j < columns; ++j) zeros[j] = zeros_of_sums<Isa>(layout, header, column + j);
        }
        start_piece<Isa, bits>(piece, layout.zeros ? zeros : nullptr, acc);
        for (int64_t to_go = steps; to_go;) {
            const int64_t run = to_go < line_left ? to_go : line_left;
            int64_t step = 0;
            for (; step + prefetch_steps <= run; step += prefetch_steps) {
                for (int line = 0; !streams && line < fetched_lines; ++line, next += cache_line_bytes) Isa::prefetch(next);
#pragma GCC unroll 4
                for (int i = 0; i < prefetch_steps; ++i) {
                    if constexpr (streams) fetch_stream<Isa, fetch, step_bytes>(codes + i * step_bytes);
                    codes_step<D, bits>(codes + i * step_bytes, left + i * k_per_word, acc);
                }
                codes += prefetch_steps * step_bytes;
                left += prefetch_steps * k_per_word;
            }
            for (; step < run; ++step, codes += step_bytes, left += k_per_word) codes_step<D, bits>(codes, left, acc);
            to_go -= run;
            line_left -= run;
            if (line_left == 0) {
                line_left = line_steps;
                left += (rows - 1) * cache_line_bytes;
            }
        }
        Floats<Isa> scales[columns];
        if (t.scaled) {
#pragma GCC unroll 8
            for (int j = 0; j < columns; ++j) scales[j] = scales_of_sums<Isa>(layout, header, column + j);
        }
        finish_piece<Isa, bits>(piece, t.scaled ? scales : nullptr, acc, sums);
        group_left -= steps;
        if (group_left == 0) {
            group_left = t.group_steps;
            header = codes - bits * 8 * column;
            for (int64_t line = 0; streams && line < t.header_bytes; line += cache_line_bytes) {
                fetch_stream<Isa, fetch, cache_line_bytes>(codes + line);
            }
            codes += t.header_bytes;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) store<Isa>(out + r * panel_columns + lanes * j, sums[r][j]);
    }
    ahead.next = next;
}

template <class D> constexpr int passes_of(int rows) { return panel_columns / lanes / D::tile_columns(rows); }

template <class D, int bits, int rows> void codes_passes(const QuantizedTile& t, FetchAhead& ahead) {
    constexpr int columns = D::tile_columns(rows);
    constexpr bool single_pass = columns == panel_columns / lanes;
    for (int column = 0; column < panel_columns / lanes; column += columns) {
        if constexpr (single_pass) {
            if (ahead.fetch == Fetch::own_past) return codes_tile<D, bits, rows, columns, Fetch::own_past>(t, column, ahead);
            if (ahead.fetch == Fetch::own_near) return codes_tile<D, bits, rows, columns, Fetch::own_near>(t, column, ahead);
        }
        codes_tile<D, bits, rows, columns, Fetch::next_block>(t, column, ahead);
    }
}

template <class D, int bits, int rows = D::tile_rows> void codes_rows(int actual_rows, const QuantizedTile& t, FetchAhead& ahead) {
    if constexpr (rows > 0) {
        if (actual_rows == rows) codes_passes<D, bits, rows>(t, ahead);
        else codes_rows<D, bits, rows - 1>(actual_rows, t, ahead);
    }
}

}  // namespace inferplane
