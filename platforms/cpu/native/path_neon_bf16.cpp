// The NEON path with the dot products of ARMv8.6, of bfloat16 and of bytes: matrix kernels of its own, the rest of NEON.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "dtype.h"
#include "memory.h"
#include "path.h"

// Everything above is compiled for any processor, everything below for this one.
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+bf16+i8mm")
#include "byte_dot_neon.h"
#include "pair_dot_neon.h"
#include "path_kernel.h"

namespace inferplane {

// Only kernels over PairDotNeon and NeonBytes are instantiated here: no symbol is shared with the plain NEON unit.
const Path& neon_bf16_path() {
    static const Path path = [] {
        Path made = neon_path();
        const int bfloat16 = int(DType::bfloat16);
        made.name = "neon_bf16";
        made.linear[bfloat16] = linear_kernels<PairDotNeon, bf16>("bfdot");
        made.floats[bfloat16] = floats_kernels<PairDotNeon, bf16>("bfdot on widened codes");
        made.attend[bfloat16][0] = attend_task<PairDotNeon, bf16, bf16>;
        made.attend[bfloat16][1] = attend_task<PairDotNeon, bf16, int8_t>;
        RangeKernel<QuantizedJob> multiply[3] = {multiply_codes<NeonBytes, float>, multiply_codes<NeonBytes, bf16>, multiply_codes<NeonBytes, f16>};
        for (int type = 0; type < 3; ++type) {
            made.codes[type].multiply = multiply[type];
            made.codes[type].tile_rows = NeonBytes::tile_rows;
            made.codes[type].product = "usdot";
        }
        made.peak_bf16 = peak_rate<PairDotNeon>;
        made.peak_int8 = peak_of_codes<NeonBytes>;
        return made;
    }();
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
