// The path with Intel AMX: bfloat16 linear on tiles, that over int8 codes where rows are many; the rest as on AVX-512 BF16.
#include "path.h"

#if INFERPLANE_AMX
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "memory.h"
#ifdef INFERPLANE_EMULATE_AMX
#include "amx_emulated.h"
#endif

namespace inferplane {
namespace {

// Linux grants the tiles' 8 KiB of state once per process, when asked.
bool ask_for_tiles() {
    constexpr long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

bool processor_has_tiles() {
    unsigned a, b, c, d, state_low, state_high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    asm volatile("xgetbv" : "=a"(state_low), "=d"(state_high) : "c"(0));
    constexpr unsigned tile_state = 3u << 17;
    if ((state_low & tile_state) != tile_state) return false;
    constexpr unsigned tiles_and_products = 1u << 25 | 1u << 24 | 1u << 22;  // of int8, and of bfloat16
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles_and_products) == tiles_and_products;
}

}  // namespace

bool amx_usable() {
    static const bool usable = processor_has_tiles() && ask_for_tiles();
    return usable;
}

}  // namespace inferplane

// Everything above is compiled for any processor, everything below for this one.
#pragma GCC push_options
// gcc 12 warns about its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c,amx-tile,amx-bf16,amx-int8")
#include "amx_attention_kernel.h"
#include "amx_codes_kernel.h"
#include "amx_linear_kernel.h"
#include "byte_dot_vnni.h"
#include "pair_dot.h"

namespace inferplane {

// Names of their own, so that no symbol is shared with units that are compiled for less.
struct PairsOnTiles : PairDot {};
struct BytesOnTiles : VnniBytes {};
struct BytesOnTilesToPairs : VnniBytes {
    static INFERPLANE_INLINE Words<Isa> narrow(Floats<Isa> low, Floats<Isa> high) { return PairDot::narrow(low, high); }
};

template <class D, class T> constexpr QuantizedKernels many_codes_kernels(RangeKernel<QuantizedJob> stage) {
    return {stage, multiply_codes_on_tiles<D, T>, 1, tile_height, "tdpbsud"};
}

const Path& amx_path() {
    static const Path path = [] {
        Path made = avx512_bf16_path();
        LinearKernels& linear = made.linear[int(DType::bfloat16)];
        made.name = "amx";
        linear.multiply = multiply_amx_panels<Avx512>;
        linear.product = "tdpbf16ps";
        made.many_codes[int(DType::float32)] = many_codes_kernels<BytesOnTiles, float>(made.codes[int(DType::float32)].stage);
        made.many_codes[int(DType::bfloat16)] = many_codes_kernels<BytesOnTilesToPairs, bf16>(made.codes[int(DType::bfloat16)].stage);
        made.many_codes[int(DType::float16)] = many_codes_kernels<BytesOnTiles, f16>(made.codes[int(DType::float16)].stage);
        made.attend[int(DType::bfloat16)][0] = attend_task<PairsOnTiles, bf16, bf16, TileProducts>;
        made.attend[int(DType::bfloat16)][1] = attend_task<PairsOnTiles, bf16, int8_t, TileProducts>;
        made.peak_bf16 = amx_peak_rate;
        made.peak_int8 = codes_tiles_peak_rate;
        return made;
    }();
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
