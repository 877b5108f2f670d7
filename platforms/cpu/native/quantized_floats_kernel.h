// The quantized linear over rows that stay floats: a piece of codes is widened in the L1 cache, and multiplied as linear does.
//
//   sums += scale * (sum over the piece of x * (code - zero))
//
// code - zero has at most eight bits: exact in bfloat16 as in float32.
#pragma once

#include "quantized_kernel.h"

namespace inferplane {

constexpr int64_t widen_ahead = 4096;  // bytes of codes that are fetched before they are widened

template <class P, class T> void stage_floats(const QuantizedJob& job, int64_t first, int64_t last) {
    stage_rows<P, T>(job, first, last);
    const int64_t padding = round_up(job.inputs, k_per_word) - job.inputs;
    for (int64_t row = first; row < last && padding; ++row) {
        std::memset(static_cast<typename P::Left*>(job.left) + row * job.left_stride + job.inputs, 0, padding * sizeof(typename P::Left));
    }
}

template <class Isa> INFERPLANE_INLINE Words<Isa> codes_of(const char* step, int bits, int column) {
    if (bits == 8) return load_words<Isa>(step + 64 * column);
    const Words<Isa> pair = load_words<Isa>(step + column / 2 * 64);
    return (column % 2 ? shift_right(pair, 4) : pair) & fill_words<Isa>(0x0f0f0f0f);
}

// Four k of sixteen outputs, in the layout that P reads: one k after the other, or in pairs of bfloat16.
template <class P> INFERPLANE_INLINE void widen_word(Words<typename P::Isa> codes, Floats<typename P::Isa> zero, typename P::Right* to) {
    using Isa = typename P::Isa;
    const auto value = [&](int k) { return from_integers(shift_right(codes, 8 * k) & fill_words<Isa>(0xff)) - zero; };
    for (int k = 0; k < k_per_word; k += P::k_per_step, to += panel_columns) {
        if constexpr (P::k_per_step == 1) store<Isa>(to, value(k));
        else store_words(to, shift_right(as_words(value(k)), 16) | (as_words(value(k + 1)) & fill_words<Isa>(0xffff0000)));
    }
}

template <class P>
void widen_piece(const QuantizedLayout& layout, const char* header, const char* codes, int64_t steps, typename P::Right* right) {
    using Isa = typename P::Isa;
    const uint8_t* zeros = reinterpret_cast<const uint8_t*>(header) + 64 * item_bytes(layout.scales);
    Floats<Isa> zero[panel_columns / lanes];
    for (int j = 0; j < panel_columns / lanes; ++j) {
        zero[j] = layout.zeros ? from_integers(load_bytes<Isa>(zeros + lanes * j)) : fill<Isa>(float(layout.offset()));
    }
    constexpr int64_t per_step = k_per_word / P::k_per_step * panel_columns;
    for (int64_t step = 0; step < steps; ++step, codes += layout.step_bytes(), right += per_step) {
        for (int64_t line = 0; line < layout.step_bytes(); line += 64) Isa::prefetch(codes + widen_ahead + line);
        for (int j = 0; j < panel_columns / lanes; ++j) widen_word<P>(codes_of<Isa>(codes, layout.bits, j), zero[j], right + lanes * j);
    }
}

template <class Isa> INFERPLANE_INLINE void add_scaled(const float* piece, const Floats<Isa> (&scale)[panel_columns / lanes], int64_t rows,
                                                     bool resume, float* sums) {
    for (int64_t row = 0; row < rows; ++row) {
        for (int j = 0; j < panel_columns / lanes; ++j) {
            const int64_t at = row * panel_columns + lanes * j;
            store<Isa>(sums + at, multiply_add(load<Isa>(piece + at), scale[j], resume ? load<Isa>(sums + at) : fill<Isa>(0.0f)));
        }
    }
}

template <class P>
void floats_slice(const QuantizedJob& job, const char* panel, int64_t first, int64_t rows, typename P::Right* right, float* sums) {
    using Isa = typename P::Isa;
    constexpr int most = Isa::tile_rows;
    const QuantizedLayout& layout = job.layout;
    const auto* left = static_cast<const typename P::Left*>(job.left) + first * job.left_stride;
    const int64_t tiles = (rows + most - 1) / most;
    alignas(64) float piece[most * panel_columns];
    for (int64_t step = 0; step < layout.steps(); step += job.piece_steps) {
        const int64_t steps = layout.steps() - step < job.piece_steps ? layout.steps() - step : job.piece_steps;
        const char* header = panel + step / layout.group_steps() * layout.group_bytes();
        widen_piece<P>(layout, header, header + layout.header_bytes() + step % layout.group_steps() * layout.step_bytes(), steps, right);
        Floats<Isa> scale[panel_columns / lanes];
        for (int j = 0; j < panel_columns / lanes; ++j) scale[j] = load_scales<Isa>(header, layout.scales, j);
        for (int64_t t = 0; t < tiles; ++t) {
            const int64_t low = rows * t / tiles, high = rows * (t + 1) / tiles;
            multiply_tile<P>(int(high - low), left + low * job.left_stride + step * k_per_word, job.left_stride, right,
                             steps * k_per_word / P::k_per_step, piece, panel_columns / lanes, false);
            add_scaled<Isa>(piece, scale, high - low, step > 0, sums + low * panel_columns);
        }
    }
}

template <class P> struct FloatsSlice {
    const QuantizedJob& job;
    typename P::Right* right;

    INFERPLANE_INLINE void operator()(int64_t panel, int64_t row, int64_t rows, bool, float* sums) const {
        floats_slice<P>(job, static_cast<const char*>(job.packed) + panel * job.layout.panel_bytes(), row, rows, right, sums);
    }
};

template <class P, class T> void multiply_floats(const QuantizedJob& job, int64_t first, int64_t last) {
    static thread_local Scratch widened;
    auto* right = widened.get<typename P::Right>(piece_of_floats / P::k_per_step * panel_columns);
    each_slice<P, T>(job, first, last, slice_rows, FloatsSlice<P>{job, right});
}

}  // namespace inferplane
