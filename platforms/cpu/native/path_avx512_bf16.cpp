// The AVX-512 path with the bfloat16 dot product: matrix kernels of its own, the rest of AVX-512 with VNNI.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "memory.h"
#include "path.h"

// Everything above is compiled for any processor, everything below for this one.
#pragma GCC push_options
// gcc 12 warns about its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma,f16c")
#include "byte_dot_vnni.h"
#include "pair_dot.h"
#include "path_kernel.h"

namespace inferplane {

// Sums of byte products leave as bfloat16 by the instruction for it.
struct VnniToPairs : VnniBytes {
    static INFERPLANE_INLINE Words<Isa> narrow(Floats<Isa> low, Floats<Isa> high) { return PairDot::narrow(low, high); }
};

// Only kernels over PairDot and VnniToPairs are instantiated here: no symbol is shared with the other AVX-512 units.
const Path& avx512_bf16_path() {
    static const Path path = [] {
        Path made = avx512_vnni_path();
        const int bfloat16 = int(DType::bfloat16);
        made.name = "avx512_bf16";
        made.linear[bfloat16] = linear_kernels<PairDot, bf16>("vdpbf16ps");
        made.codes[bfloat16].multiply = multiply_codes<VnniToPairs, bf16>;
        made.floats[bfloat16] = floats_kernels<PairDot, bf16>("vdpbf16ps on widened codes");
        made.attend[bfloat16][0] = attend_task<PairDot, bf16, bf16>;
        made.attend[bfloat16][1] = attend_task<PairDot, bf16, int8_t>;
        made.peak_bf16 = peak_rate<PairDot>;
        return made;
    }();
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
