// Our own operators, for programs whose methods `step` and `read` call them.

#pragma once

#include "attention.h"
#include "linear.h"

#include <executorch/runtime/kernel/operator_registry.h>

#include <array>

namespace operators {

// Whether they are there: the processor has what they need, and the runtime takes them.
inline bool install() {
  using executorch::runtime::Kernel;
  static const std::array kernels{
      Kernel("paredown::linear.out", linear::call), Kernel("paredown::attend.out", attention::call),
      Kernel("paredown::output_layer.out", linear::call),  // the name in programs of before
  };
  return kernel::here() && executorch::runtime::register_kernels({kernels.data(), kernels.size()}) ==
                               executorch::runtime::Error::Ok;
}

}  // namespace operators
