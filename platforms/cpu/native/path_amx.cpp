// The path with Intel AMX: bfloat16 linear on tiles, for every number of rows; the rest as on AVX-512 BF16.
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
    constexpr unsigned tiles_and_bf16 = 1u << 24 | 1u << 22;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tiles_and_bf16) == tiles_and_bf16;
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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c,amx-tile,amx-bf16")
#include "isa_avx512.h"
#include "amx_kernel.h"

namespace inferplane {

const Path& amx_path() {
    static const Path path = [] {
        Path made = avx512_bf16_path();
        LinearKernels& linear = made.linear[int(DType::bfloat16)];
        made.name = "amx";
        linear.multiply = multiply_amx_panels<Avx512>;
        linear.product = "tdpbf16ps";
        made.peak_bf16 = amx_peak_rate;
        return made;
    }();
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
