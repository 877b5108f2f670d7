// Packs codes and scales into panels, and drives the quantized linear: a slab of rows is staged, then panels are shared out.
#include "quantized.h"

#include <algorithm>
#include <numeric>

#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t small_stage = 1 << 15;  // elements that one thread stages sooner than two would

// Four codes of one output into their column of a step, offset so that they are unsigned.
template <int bits> void put_word(char* step, int64_t column, uint32_t word) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(step);
    if constexpr (bits == 8) {
        words[column] = word ^ 0x80808080;
    } else {
        uint32_t& pair = words[column / 32 * 16 + column % 16];
        const int shift = column / 16 % 2 * 4;
        pair = (pair & ~(0x0f0f0f0fu << shift)) | ((word ^ 0x08080808) & 0x0f0f0f0f) << shift;
    }
}

// Codes of one output from step `start` on: all but the last word of a row are whole.
template <int bits> void pack_row(const QuantizedLayout& layout, char* panel, int64_t column, const int8_t* codes, int64_t start, int64_t stop) {
    const int64_t group_steps = layout.group_steps(), header_bytes = layout.header_bytes(), whole = std::min(stop, layout.inputs / k_per_word);
    char* to = panel + start / group_steps * layout.group_bytes() + header_bytes + start % group_steps * layout.step_bytes();
    int64_t left = group_steps - start % group_steps;
    for (int64_t step = start; step < stop; ++step, --left, to += bits * 32) {
        if (left == 0) {
            left = group_steps;
            to += header_bytes;
        }
        uint32_t word = 0;
        if (step < whole) __builtin_memcpy(&word, codes + step * k_per_word, k_per_word);
        else __builtin_memcpy(&word, codes + step * k_per_word, layout.inputs % k_per_word);
        put_word<bits>(to, column, word);
    }
}

void pack_codes(const QuantizedLayout& layout, char* panel, int64_t first, const int8_t* codes, int64_t rows) {
    constexpr int64_t run = 16;  // words at a time, so that the rows' lines stay in the L1 cache
    for (int64_t start = 0; start < layout.steps(); start += run) {
        const int64_t stop = std::min(start + run, layout.steps());
        for (int64_t row = 0; row < rows; ++row) {
            const int8_t* from = codes + row * layout.inputs;
            if (layout.bits == 8) pack_row<8>(layout, panel, first + row, from, start, stop);
            else pack_row<4>(layout, panel, first + row, from, start, stop);
        }
    }
}

void pack_headers(const QuantizedLayout& layout, char* panel, int64_t first, const char* scales, const int8_t* zeros, int64_t rows) {
    const int64_t bytes = item_bytes(layout.scales), groups = layout.groups();
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t group = 0; group < groups; ++group) {
            char* const header = panel + group * layout.group_bytes();
            __builtin_memcpy(header + (first + row) * bytes, scales + (row * groups + group) * bytes, bytes);
            if (layout.zeros) header[64 * bytes + first + row] = char(zeros[row * groups + group] + layout.offset());
        }
    }
}

// The largest divisor of the groups of both sides that does not exceed `most` k; all in steps.
int64_t piece_steps(const QuantizedJob& job) {
    const int64_t steps = job.layout.steps(), most = (job.quantizes ? piece_of_codes : piece_of_floats) / k_per_word;
    int64_t shared = job.layout.groups() > 1 ? job.layout.group_steps() : 0;
    const bool row_groups = job.quantizes && job.activation_group && job.activation_group < job.inputs;
    if (row_groups) shared = std::gcd(shared, job.activation_group / k_per_word);
    if (shared == 0) return std::min(steps, most);
    int64_t piece = std::min(shared, most);
    while (shared % piece) --piece;
    return piece;
}

// Whether the rows are many and all pieces are whole tiles.
bool takes_many(const Path& path, const QuantizedJob& job) {
    const QuantizedKernels& few = path.codes[int(job.dtype)];
    return job.quantizes && path.many_codes[int(job.dtype)].multiply && job.rows > few.tile_rows && job.piece_steps % job.tile_words() == 0 &&
           job.layout.inputs % (job.tile_words() * k_per_word) == 0;
}

// Few rows meet a block that stays in the L2 cache, unless it is widened first; many one that stays in the L1 cache.
int64_t block_of_tiles_for(const QuantizedJob& job) {
    return job.rows <= few_rows_of_tiles && job.layout.bits == 8 ? block_of_few_rows : block_of_tiles;
}

// Rows whose codes stay in the L2 cache while panels pass.
int64_t slab_of_tiles(const QuantizedJob& job) {
    constexpr int64_t together = 32, most = 512, bytes = 1 << 20;
    return std::clamp(bytes / job.layout.inputs / together * together, together, most);
}

}  // namespace

void pack_quantized(const QuantizedLayout& layout, void* packed, int64_t first_row, const int8_t* codes, const void* scales,
                    const int8_t* zeros, int64_t rows) {
    if (rows == 0) return;
    const int64_t first_panel = first_row / 64, last_panel = (first_row + rows - 1) / 64;
    const int64_t scale_row = layout.groups() * item_bytes(layout.scales);
    parallel(last_panel - first_panel + 1, [&](int64_t i) {
        const int64_t start = (first_panel + i) * 64;
        const int64_t low = std::max(start, first_row), count = std::min(start + 64, first_row + rows) - low, skip = low - first_row;
        char* const panel = static_cast<char*>(packed) + (first_panel + i) * layout.panel_bytes();
        pack_headers(layout, panel, low - start, static_cast<const char*>(scales) + skip * scale_row,
                     zeros ? zeros + skip * layout.groups() : nullptr, count);
        pack_codes(layout, panel, low - start, codes + skip * layout.inputs, count);
    });
}

void quantized_linear(QuantizedJob& job) {
    static thread_local Scratch staged, scales;
    const Path& path = active_path();
    job.activate = path.activation[int(DType::float32)];
    job.piece_steps = piece_steps(job);
    const bool many = job.as_bytes = takes_many(path, job);
    const QuantizedKernels& kernels = many ? path.many_codes[int(job.dtype)] : job.quantizes ? path.codes[int(job.dtype)] : path.floats[int(job.dtype)];
    job.tile_rows = kernels.tile_rows;
    // One row reads each code a single time: nothing needs to stay, and a panel is one block.
    const int64_t steps = job.layout.steps(), in_cache = (many ? block_of_tiles_for(job) : block_of_codes / job.layout.bits) / k_per_word;
    job.block_steps = std::max<int64_t>(1, (job.rows == 1 ? steps : std::min(steps, in_cache)) / job.piece_steps) * job.piece_steps;
    // Rows of floats: off the powers of two, so that those of a tile do not fall on the same lines of the cache.
    job.left_stride = job.quantizes ? job.blocks() * job.block_bytes() : round_up(job.inputs, 64) + 64;
    const int64_t most = many ? slab_of_tiles(job) : job.quantizes ? slab_of_codes : slab_rows, slab = std::min(job.rows, most), together = job.panels_together();
    const int64_t panels = linear_panels(job.outputs) / together;
    job.left = staged.get<char>(slab * job.left_stride * kernels.left_bytes);
    if (job.quantizes) job.pieces = scales.get<PieceOfRow>(slab * job.blocks() * job.block_pieces());
    for (job.first_row = 0; job.first_row < job.rows; job.first_row += most) {
        job.slab = std::min(job.rows - job.first_row, most);
        parallel_ranges(job.slab, std::max<int64_t>(1, small_stage / std::max<int64_t>(1, job.inputs)),
                        [&](int64_t first, int64_t last) { kernels.stage(job, first, last); });
        parallel_ranges(panels, 1, [&](int64_t first, int64_t last) { kernels.multiply(job, first * together, last * together); });
    }
}

}  // namespace inferplane
