// SPDX-License-Identifier: MIT
#pragma once

#include "tests/csrc/hopper/conformance.h"
#include "tests/support/catch.h"

/// The device layer's test cases, one for each primitive and each product: a GPU that stops at an illegal instruction
/// is of no use to the cases after it, so each can be run by its name in a process of its own. Names are plain words
/// below 70 characters, which scripts/gpu_check.sh reads off --list-tests.
///
/// Whoever includes this has declared
///   template <class Check> void on_machines(Check check), which calls check(machine, random)
/// in namespace prulong::kernels::conformance.
namespace prulong::kernels::conformance {

#define PRULONG_CASE(name, ...)                                                       \
  TEST_CASE(name) {                                                                   \
    on_machines([](auto& machine, [[maybe_unused]] Random& random) { __VA_ARGS__; }); \
  }

PRULONG_CASE("identity of threads", check_identity(machine))
PRULONG_CASE("elect and shuffle and any", check_warp_functions(machine))
PRULONG_CASE("registers", check_registers(machine))
PRULONG_CASE("arithmetic", check_arithmetic(machine, random))
PRULONG_CASE("shared loads and stores", check_shared_memory(machine, random))
PRULONG_CASE("store matrices", check_matrices<true, false>(machine, random))
PRULONG_CASE("store matrices transposed", check_matrices<true, true>(machine, random))
PRULONG_CASE("load matrices", check_matrices<false, false>(machine, random))
PRULONG_CASE("load matrices transposed", check_matrices<false, true>(machine, random))
PRULONG_CASE("memory barriers", check_memory_barriers(machine))
PRULONG_CASE("named barriers", check_named_barriers(machine))
PRULONG_CASE("load boxes of 16 bits", check_loads<uint16_t, true>(machine, random, Boxes<uint16_t, true>::starts()))
PRULONG_CASE("load boxes of 32 bits", check_loads<float, false>(machine, random, Boxes<float, false>::starts()))
PRULONG_CASE("load boxes of 16 bits from before the tensor",
             check_loads<uint16_t, true>(machine, random, Boxes<uint16_t, true>::negative_starts()))
PRULONG_CASE("load boxes of 32 bits from before the tensor",
             check_loads<float, false>(machine, random, Boxes<float, false>::negative_starts()))
PRULONG_CASE("store boxes of 16 bits", check_stores<uint16_t, true>(machine, random))
PRULONG_CASE("store boxes of 32 bits", check_stores<float, false>(machine, random))
PRULONG_CASE("bulk loads and additions", check_bulk_copies(machine, random))
PRULONG_CASE("atomics and semaphores", check_atomics(machine))

#define PRULONG_PRODUCT(type, columns, a, b, registers, words) \
  PRULONG_CASE("product " #type " N " #columns " " words,      \
               check_product<ElementType::k##type, columns, Major::a, Major::b, registers>(machine, random))
#define PRULONG_PRODUCTS(type, columns)                                     \
  PRULONG_PRODUCT(type, columns, kK, kK, false, "A by K and B by K")        \
  PRULONG_PRODUCT(type, columns, kK, kMN, false, "A by K and B by MN")      \
  PRULONG_PRODUCT(type, columns, kMN, kK, false, "A by MN and B by K")      \
  PRULONG_PRODUCT(type, columns, kMN, kMN, false, "A by MN and B by MN")    \
  PRULONG_PRODUCT(type, columns, kK, kK, true, "A in registers and B by K") \
  PRULONG_PRODUCT(type, columns, kK, kMN, true, "A in registers and B by MN")
PRULONG_PRODUCTS(BFloat16, 32)
PRULONG_PRODUCTS(BFloat16, 64)
PRULONG_PRODUCTS(BFloat16, 96)
PRULONG_PRODUCTS(BFloat16, 128)
PRULONG_PRODUCTS(Float16, 64)
PRULONG_PRODUCTS(Float16, 128)

#undef PRULONG_PRODUCTS
#undef PRULONG_PRODUCT
#undef PRULONG_CASE

}  // namespace prulong::kernels::conformance
