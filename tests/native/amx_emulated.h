// Stands in for the tile intrinsics of <immintrin.h>, with the semantics of Intel's Software Developer's Manual.
//
// Eight tiles per thread. Shapes that the processor would refuse (#GP, #UD) end the process with a message.
// A product fuses each multiplication with its addition, sums even and odd k apart, reads and writes subnormals as zero.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_emulated {

struct Tile {
    int rows, row_bytes;
    alignas(64) unsigned char data[16][64];
};

inline Tile* tiles() {
    static thread_local Tile all[8];
    return all;
}

inline bool& configured() {
    static thread_local bool yes = false;
    return yes;
}

inline void demand(bool holds, const char* what) {
    if (holds) return;
    std::fprintf(stderr, "AMX: the processor would refuse: %s\n", what);
    std::abort();
}

inline float flushed(float value) { return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value; }

inline float widened(const unsigned char* bytes) {
    float value;
    unsigned char bits[4] = {0, 0, bytes[0], bytes[1]};
    std::memcpy(&value, bits, 4);
    return flushed(value);
}

inline void loadconfig(const void* config) {
    const auto* bytes = static_cast<const unsigned char*>(config);
    demand(bytes[0] == 1, "a palette other than 1");
    for (int i = 1; i < 16; ++i) demand(bytes[i] == 0, "reserved bytes of the configuration that are not 0");
    for (int t = 0; t < 16; ++t) {
        const int row_bytes = bytes[16 + 2 * t] | bytes[17 + 2 * t] << 8, rows = bytes[48 + t];
        demand(t < 8 || (rows == 0 && row_bytes == 0), "a ninth tile");
        demand(rows <= 16 && row_bytes <= 64 && (rows == 0) == (row_bytes == 0), "a tile larger than 16 rows of 64 bytes, or half empty");
        if (t < 8) {
            tiles()[t] = Tile{};
            tiles()[t].rows = rows;
            tiles()[t].row_bytes = row_bytes;
        }
    }
    configured() = true;
}

inline void release() {
    for (int t = 0; t < 8; ++t) tiles()[t] = Tile{};
    configured() = false;
}

inline Tile& used(int t) {
    demand(configured() && tiles()[t].rows > 0, "a tile without a shape");
    return tiles()[t];
}

inline void zero(int t) { std::memset(used(t).data, 0, sizeof(Tile::data)); }

inline void loadd(int t, const void* base, long stride) {
    zero(t);
    Tile& tile = used(t);
    for (int row = 0; row < tile.rows; ++row) std::memcpy(tile.data[row], static_cast<const char*>(base) + row * stride, tile.row_bytes);
}

inline void stored(int t, void* base, long stride) {
    const Tile& tile = used(t);
    for (int row = 0; row < tile.rows; ++row) std::memcpy(static_cast<char*>(base) + row * stride, tile.data[row], tile.row_bytes);
}

inline void demand_product(int to, int from_left, int from_right) {
    const Tile &sums = used(to), &left = used(from_left), &right = used(from_right);
    demand(to != from_left && to != from_right && from_left != from_right, "one tile twice");
    demand(sums.rows == left.rows && sums.row_bytes == right.row_bytes && left.row_bytes == 4 * right.rows, "shapes that do not fit");
}

// sums [rows, columns] += left [rows, words of four signed bytes of k] right [words of four unsigned bytes of k, columns]
inline void dpbsud(int to, int from_left, int from_right) {
    demand_product(to, from_left, from_right);
    Tile &sums = used(to), &left = used(from_left), &right = used(from_right);
    for (int row = 0; row < sums.rows; ++row) {
        for (int column = 0; column < sums.row_bytes / 4; ++column) {
            int32_t sum;
            std::memcpy(&sum, sums.data[row] + 4 * column, 4);
            for (int k = 0; k < 4 * right.rows; ++k) sum += int8_t(left.data[row][k]) * int(right.data[k / 4][4 * column + k % 4]);
            std::memcpy(sums.data[row] + 4 * column, &sum, 4);
        }
    }
}

// sums [rows, columns] += left [rows, pairs of k] right [pairs of k, columns]
inline void dpbf16ps(int to, int from_left, int from_right) {
    demand_product(to, from_left, from_right);
    Tile &sums = used(to), &left = used(from_left), &right = used(from_right);
    for (int row = 0; row < sums.rows; ++row) {
        for (int column = 0; column < sums.row_bytes / 4; ++column) {
            float parts[2] = {0, 0}, sum;
            for (int pair = 0; pair < right.rows; ++pair) {
                for (int odd = 0; odd < 2; ++odd) {
                    const float a = widened(left.data[row] + 4 * pair + 2 * odd), b = widened(right.data[pair] + 4 * column + 2 * odd);
                    parts[odd] = flushed(std::fma(a, b, parts[odd]));
                }
            }
            std::memcpy(&sum, sums.data[row] + 4 * column, 4);
            sum = flushed(flushed(sum) + flushed(parts[0] + parts[1]));
            std::memcpy(sums.data[row] + 4 * column, &sum, 4);
        }
    }
    // What a product writes has zeros beyond its rows and columns: loads and zeroing leave them so already.
}

}  // namespace amx_emulated

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig amx_emulated::loadconfig
#define _tile_release amx_emulated::release
#define _tile_loadd amx_emulated::loadd
#define _tile_stored amx_emulated::stored
#define _tile_zero amx_emulated::zero
#define _tile_dpbf16ps amx_emulated::dpbf16ps
#define _tile_dpbsud amx_emulated::dpbsud
