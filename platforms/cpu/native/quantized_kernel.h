// The quantized linear over rows of int8 codes, for one instruction set: stage rows, then multiply panels.
//
//   for a panel of 64 outputs
//     for a slice of 258 rows            sums [258, 64] float32 in L2
//       for a block of about 512 k       in L1; meanwhile the next block is prefetched into L2
//         for a tile of up to 6 rows
//           for a piece                  int32 in registers, then sums += float(piece) * weight scale * row scale
//
// Pieces start at the same k for every row, tile and thread: equal bits for any batch.
#pragma once

#include "linear_kernel.h"
#include "quantized.h"

namespace inferplane {

template <class Isa> INFERPLANE_INLINE void store_bytes(int8_t* to, Words<Isa> v) {
    typedef int8_t bytes __attribute__((vector_size(sizeof(typename Isa::u32) / 4)));
    for (int i = 0; i < Isa::parts; ++i) {
        const bytes narrow = __builtin_convertvector(typename Isa::i32(v.part[i]), bytes);
        __builtin_memcpy(to + sizeof narrow * i, &narrow, sizeof narrow);
    }
}

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

template <class Isa> INFERPLANE_INLINE int32_t sum(Words<Isa> a) {
    alignas(64) int32_t x[lanes];
    std::memcpy(x, &a, sizeof x);
    int32_t total = 0;
    for (int i = 0; i < lanes; ++i) total += x[i];
    return total;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> load_scales(const char* header, DType type, int column) {
    switch (type) {
        case DType::float32: return load<Isa>(reinterpret_cast<const float*>(header) + lanes * column);
        case DType::bfloat16: return load<Isa>(reinterpret_cast<const bf16*>(header) + lanes * column);
        default: return load<Isa>(reinterpret_cast<const f16*>(header) + lanes * column);
    }
}

// The largest magnitude; infinity where there is an infinity or NaN, as bits order all of them.
template <class Isa, class T> INFERPLANE_INLINE float largest_magnitude(const T* x, int64_t count) {
    const Words<Isa> magnitude = fill_words<Isa>(0x7fffffff), infinity = fill_words<Isa>(0x7f800000);
    Words<Isa> most = fill_words<Isa>(0);
    for (int64_t k = 0; k < count; k += lanes) {
        const Words<Isa> bits = as_words(load_upto<Isa>(x + k, count - k)) & magnitude;
        most = where_less(most, bits, bits, most);
    }
    return maximum(as_floats(where_less(most, infinity, most, infinity)));
}

// Codes of `count` values, zeros behind them up to a vector; the sum of the codes.
template <class Isa, class T> INFERPLANE_INLINE int32_t stage_piece(const T* x, int64_t count, float inverse, int8_t* codes) {
    Words<Isa> total = fill_words<Isa>(0);
    for (int64_t k = 0; k < count; k += lanes) {
        const Words<Isa> code = to_integers(round_even(load_upto<Isa>(x + k, count - k) * fill<Isa>(inverse)));
        store_bytes<Isa>(codes + k, code);
        total = total + code;
    }
    return sum(total);
}

// As ops.quantize.quantized_rows does it, operation by operation.
template <class Isa, class T> void stage_codes(const QuantizedJob& job, int64_t first, int64_t last) {
    constexpr float limit = 127.0f;
    const int64_t inputs = job.inputs, piece = job.piece_steps * k_per_word, group = job.activation_group ? job.activation_group : inputs;
    const int32_t factor = job.layout.zeros ? -1 : -job.layout.offset();
    for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(job.x) + (job.first_row + row) * inputs;
        int8_t* codes = static_cast<int8_t*>(job.left) + row * job.left_stride;
        PieceOfRow* made = job.pieces + row * job.piece_count();
        for (int64_t start = 0; start < inputs; start += group) {
            const int64_t stop = inputs - start < group ? inputs : start + group;
            const float most = largest_magnitude<Isa>(x + start, stop - start);
            const bool finite = most < __builtin_inff();
            const float inverse = most > 0 && limit / most < __builtin_inff() ? limit / most : 0.0f;
            for (int64_t k = start; k < stop; k += piece) {
                const int64_t count = stop - k < piece ? stop - k : piece;
                if (finite) {
                    *made++ = {most / limit, factor * stage_piece<Isa>(x + k, count, inverse, codes + k)};
                } else {
                    std::memset(codes + k, 0, round_up(count, k_per_word));
                    *made++ = {__builtin_nanf(""), 0};
                }
            }
        }
    }
}

// Scales and zero points of a block's pieces, widened once for all rows.
struct BlockScales {
    float scales[piece_of_codes / k_per_word][panel_columns];
    uint32_t zeros[piece_of_codes / k_per_word][panel_columns];
};

// Pieces of a panel, and the rows that meet them.
struct QuantizedTile {
    const char* codes;  // of the first piece
    int64_t in_group, group_steps, header_bytes;  // steps of its group that lie before the first piece
    int64_t steps, piece_steps;
    const int8_t* left;  // [rows, left_stride], from the first piece's k
    int64_t left_stride;
    const PieceOfRow* pieces;  // [rows, piece_stride], from the first piece
    int64_t piece_stride;
    const float* scales;    // [pieces, 64], or null where outputs are scaled at the end
    const uint32_t* zeros;  // [pieces, 64], or null
    float* sums;            // [rows, 64]
    Prefetch prefetch;
};

template <class D, int bits, int rows, int columns>
INFERPLANE_INLINE void codes_step(const char* codes, const int8_t* left, int64_t left_stride,
                                  Words<typename D::Isa> (&acc)[rows][columns]) {
    using Isa = typename D::Isa;
    Words<Isa> weight[columns];
    if constexpr (bits == 8) {
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) weight[j] = load_words<Isa>(codes + 64 * j);
    } else {
        const Words<Isa> low = fill_words<Isa>(0x0f0f0f0f);
#pragma GCC unroll 8
        for (int j = 0; j < columns; j += 2) {
            const Words<Isa> pair = load_words<Isa>(codes + 32 * j);
            weight[j] = pair & low;
            weight[j + 1] = shift_right(pair, 4) & low;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        uint32_t four;
        std::memcpy(&four, left + r * left_stride, sizeof four);
        const Words<Isa> row = fill_words<Isa>(four);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) acc[r][j] = D::dot(weight[j], row, acc[r][j]);
    }
    // Loads of the next step stay there: the compiler would hoist them, and spill sums to make room.
    asm volatile("" ::: "memory");
}

// Unsigned codes carry an offset, and perhaps a zero point: sums start with the correction for it.
template <class Isa, int rows, int columns>
INFERPLANE_INLINE void start_piece(const PieceOfRow* piece, int64_t piece_stride, const uint32_t* zeros, Words<Isa> (&acc)[rows][columns]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const Words<Isa> correction = fill_words<Isa>(uint32_t(piece[r * piece_stride].correction));
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) acc[r][j] = zeros ? correction * load_words<Isa>(zeros + lanes * j) : correction;
    }
}

template <class Isa, int rows, int columns>
INFERPLANE_INLINE void finish_piece(const PieceOfRow* piece, int64_t piece_stride, const float* scales, float* sums,
                                    const Words<Isa> (&acc)[rows][columns]) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
        const Floats<Isa> of_row = fill<Isa>(piece[r * piece_stride].scale);
#pragma GCC unroll 8
        for (int j = 0; j < columns; ++j) {
            float* const sum = sums + r * panel_columns + lanes * j;
            Floats<Isa> v = from_integers(acc[r][j]);
            if (scales) v = v * load<Isa>(scales + lanes * j);
            store<Isa>(sum, multiply_add(v, of_row, load<Isa>(sum)));
        }
    }
}

template <class D, int bits, int rows, int columns> __attribute__((noinline)) void codes_tile(const QuantizedTile& whole, int column) {
    using Isa = typename D::Isa;
    const QuantizedTile t = whole;  // a copy, which no store can alias
    float* const sums = t.sums + lanes * column;
    constexpr int64_t step_bytes = bits * 32;
    const char *codes = t.codes + bits * 8 * column, *next = t.prefetch.next;
    const int lines = column ? 0 : t.prefetch.lines;
    const int8_t* left = t.left;
    const PieceOfRow* piece = t.pieces;
    const float* scales = t.scales ? t.scales + lanes * column : nullptr;
    const uint32_t* zeros = t.zeros ? t.zeros + lanes * column : nullptr;
    int64_t group_left = t.group_steps - t.in_group;
    for (int64_t done = 0; done < t.steps; done += t.piece_steps, ++piece) {
        const int64_t steps = t.steps - done < t.piece_steps ? t.steps - done : t.piece_steps;
        Words<Isa> acc[rows][columns];
        start_piece<Isa>(piece, t.piece_stride, zeros, acc);
        for (int64_t step = 0; step < steps; ++step, codes += step_bytes, left += k_per_word) {
            for (int line = step % prefetch_steps ? lines : 0; line < lines; ++line, next += 64) Isa::prefetch(next);
            codes_step<D, bits, rows, columns>(codes, left, t.left_stride, acc);
        }
        finish_piece<Isa>(piece, t.piece_stride, scales, sums, acc);
        if (scales) scales += panel_columns;
        if (zeros) zeros += panel_columns;
        group_left -= steps;
        if (group_left == 0) {
            group_left = t.group_steps;
            codes += t.header_bytes;
        }
    }
}

template <class D, int bits, int rows = D::tile_rows> void codes_tiles(int actual_rows, const QuantizedTile& t) {
    if constexpr (rows > 0) {
        if (actual_rows != rows) return codes_tiles<D, bits, rows - 1>(actual_rows, t);
        for (int column = 0; column < panel_columns / lanes; column += D::tile_columns) codes_tile<D, bits, rows, D::tile_columns>(t, column);
    }
}

template <class Isa> void widen_scales(const QuantizedJob& job, const char* panel, int64_t step, int64_t steps, BlockScales& to) {
    const QuantizedLayout& layout = job.layout;
    for (int64_t piece = 0; piece * job.piece_steps < steps; ++piece) {
        const char* header = panel + (step + piece * job.piece_steps) / layout.group_steps() * layout.group_bytes();
        const uint8_t* zeros = reinterpret_cast<const uint8_t*>(header) + 64 * item_bytes(layout.scales);
        for (int j = 0; j < panel_columns / lanes; ++j) {
            store<Isa>(to.scales[piece] + lanes * j, load_scales<Isa>(header, layout.scales, j));
            if (layout.zeros) store_words(to.zeros[piece] + lanes * j, load_bytes<Isa>(zeros + lanes * j));
        }
    }
}

template <class D>
void codes_slice(const QuantizedJob& job, const char* panel, int64_t first, int64_t rows, bool last_panel, float* sums) {
    constexpr int most = D::tile_rows;
    const QuantizedLayout& layout = job.layout;
    const int64_t steps = layout.steps(), tiles = (rows + most - 1) / most, count = job.piece_count(), group_steps = layout.group_steps();
    const int64_t longest = piece_of_codes / k_per_word / job.piece_steps * job.piece_steps;
    const bool scaled = layout.groups() > 1;
    const int8_t* left = static_cast<const int8_t*>(job.left) + first * job.left_stride;
    const PieceOfRow* pieces = job.pieces + first * count;
    const auto codes_at = [&](int64_t step) {
        return panel + step / group_steps * layout.group_bytes() + layout.header_bytes() + step % group_steps * layout.step_bytes();
    };
    BlockScales of_block;
    std::memset(sums, 0, rows * panel_columns * sizeof(float));
    for (int64_t step = 0; step < steps; step += longest) {
        const int64_t block = steps - step < longest ? steps - step : longest;
        if (scaled || layout.zeros) widen_scales<typename D::Isa>(job, panel, step, block, of_block);
        const char* const codes = codes_at(step);
        // The block after this one follows in memory, be it of this panel or of the next.
        const bool more = !last_panel || step + block < steps;
        const char* const next = step + block < steps ? codes_at(step + block) : panel + layout.panel_bytes();
        const int64_t block_lines = (next - codes + 63) / 64, fetches = block / prefetch_steps;
        const int64_t lines = fetches ? (block_lines + fetches * tiles - 1) / (fetches * tiles) : 0, lines_per_tile = fetches * lines;
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t low = rows * t / tiles, high = rows * (t + 1) / tiles;
            const bool fetch = more && t * lines_per_tile < block_lines;
            const QuantizedTile tile{codes, step % group_steps, group_steps, layout.header_bytes(), block, job.piece_steps,
                                     left + low * job.left_stride + step * k_per_word, job.left_stride,
                                     pieces + low * count + step / job.piece_steps, count, scaled ? of_block.scales[0] : nullptr,
                                     layout.zeros ? of_block.zeros[0] : nullptr, sums + low * panel_columns,
                                     {next + t * lines_per_tile * 64, fetch ? int(lines) : 0}};
            if (layout.bits == 8) codes_tiles<D, 8>(int(high - low), tile);
            else codes_tiles<D, 4>(int(high - low), tile);
        }
    }
}

// The only group's weight scales, once per output.
template <class Isa> void scale_sums(const QuantizedLayout& layout, const char* panel, int64_t rows, float* sums) {
    for (int j = 0; j < panel_columns / lanes; ++j) {
        const Floats<Isa> scale = load_scales<Isa>(panel, layout.scales, j);
        for (int64_t row = 0; row < rows; ++row) {
            float* const at = sums + row * panel_columns + lanes * j;
            store<Isa>(at, load<Isa>(at) * scale);
        }
    }
}

template <class Isa, class T>
void store_quantized(const QuantizedJob& job, int64_t panel, int64_t first_row, int64_t rows, const float* sums) {
    if (job.out_dtype == DType::float32) store_slice<Isa, T, float>(job, panel, first_row, rows, sums);
    else store_slice<Isa, T, T>(job, panel, first_row, rows, sums);
}

template <class D, class T> void multiply_codes(const QuantizedJob& job, int64_t first, int64_t last) {
    using Isa = typename D::Isa;
    static thread_local Scratch scratch;
    float* sums = scratch.get<float>(slice_rows * panel_columns);
    for (int64_t panel = first; panel < last; ++panel) {
        const char* stream = static_cast<const char*>(job.packed) + panel * job.layout.panel_bytes();
        for (int64_t row = 0; row < job.slab; row += slice_rows) {
            const int64_t rows = job.slab - row < slice_rows ? job.slab - row : slice_rows;
            codes_slice<D>(job, stream, row, rows, panel + 1 == last, sums);
            if (job.layout.groups() == 1) scale_sums<Isa>(job.layout, stream, rows, sums);
            store_quantized<Isa, T>(job, panel, job.first_row + row, rows, sums);
        }
    }
}

// Twelve independent chains of byte products: more than latency times issue rate.
template <class D> double peak_of_codes(int64_t rounds, float* sink) {
    using Isa = typename D::Isa;
    constexpr int chains = 12 / Isa::parts;
    alignas(64) uint32_t words[lanes] = {};
    const Words<Isa> a = load_words<Isa>(words), b = load_words<Isa>(words);
    Words<Isa> sums[chains];
    for (int i = 0; i < chains; ++i) sums[i] = fill_words<Isa>(i);
    for (int64_t round = 0; round < rounds; ++round) {
        for (int i = 0; i < chains; ++i) sums[i] = D::dot(a, b, sums[i]);
    }
    for (int i = 1; i < chains; ++i) sums[0] = sums[0] + sums[i];
    *sink = float(sum(sums[0]));
    return 2.0 * k_per_word * lanes * chains * double(rounds);
}

}  // namespace inferplane
