// The NEON path: what every 64-bit ARM processor has, so no target region is needed.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>
#include <vector>

#include "isa_neon.h"
#include "path_kernel.h"

namespace inferplane {

const Path& neon_path() {
    static constexpr Path path = make_path<Neon>("neon");
    return path;
}

}  // namespace inferplane
#endif
