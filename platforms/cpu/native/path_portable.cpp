// The portable path: whatever the compiler's baseline is. The yardstick of every other path.
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "memory.h"
#include "path.h"

#include "isa_portable.h"
#include "path_kernel.h"

namespace inferplane {

const Path& portable_path() {
    static constexpr Path path = make_path<Portable>("portable");
    return path;
}

}  // namespace inferplane
