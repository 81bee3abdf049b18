// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/platform.h"

#if PRULONG_ON_DEVICE
#include <cuda.h>
#endif

namespace prulong::kernels::device {

/// Bulk copies between global and shared memory (TMA). One thread issues; the copy goes on by itself.
///
/// A tensor map describes a rank-3 tensor {fastest dimension, rows, heads} in global memory and a box of it. Boxes of
/// 16-bit elements are 64 elements (128 bytes) wide and lie in shared memory as [rows][128 bytes], aligned to 1,024, in
/// the 128-byte swizzle: 16-byte chunk c of row r lies at chunk c ^ (r mod 8). Boxes of float have no swizzle. Reads
/// outside the tensor give zeros, writes outside are dropped; a box always moves its whole size in bytes.
/// A box starts at a column whose bytes are a multiple of 16 (else: "illegal instruction"). Loads may start before the
/// tensor, stores may not. A tensor that is stored to has rows of a multiple of 16 bytes: the GPU drops what lies
/// outside by chunks of 16 bytes, and writes the whole of one that lies half inside. Host code makes them:
/// csrc/hopper/tensor_map.h.
#if PRULONG_ON_DEVICE
using TensorMap = CUtensorMap;
#else
struct TensorMap {
  void* base;         // of the tensor in host memory
  int element_bytes;  // 2 or 4
  bool swizzle;       // 128-byte swizzle
  int64_t extent[3];  // elements
  int64_t stride[3];  // bytes between neighbours; stride[0] is element_bytes
  int32_t box[3];     // elements
};
#endif

PRULONG_DEVICE void prefetch(const TensorMap& map PRULONG_SITE);
/// Loads the box that starts at {column, row, head} to `to`, and completes its bytes on `barrier`. keep: a hint that
/// the data will be read again soon by other CTAs.
PRULONG_DEVICE void load_box(Shared to, const TensorMap& map, Shared barrier, int column, int row, int head,
                             bool keep PRULONG_SITE);
/// Stores the box at `from`; part of the calling thread's current group of stores.
PRULONG_DEVICE void store_box(const TensorMap& map, Shared from, int column, int row, int head PRULONG_SITE);
/// Loads `bytes` contiguous bytes; both addresses and the size are multiples of 16.
PRULONG_DEVICE void load_bulk(Shared to, const void* from, int bytes, Shared barrier PRULONG_SITE);
/// Adds floats in shared memory to global memory; part of the calling thread's current group of stores.
PRULONG_DEVICE void add_bulk(float* to, Shared from, int bytes PRULONG_SITE);
/// Ends the calling thread's current group of stores.
PRULONG_DEVICE void commit_stores(PRULONG_SITE_ONLY);
/// Returns once at most kPending of the calling thread's latest groups have not yet read their shared memory.
template <int kPending>
PRULONG_DEVICE void wait_stores_read(PRULONG_SITE_ONLY);
/// Returns once at most kPending of the calling thread's latest groups have not yet written global memory.
template <int kPending>
PRULONG_DEVICE void wait_stores(PRULONG_SITE_ONLY);

#if PRULONG_ON_DEVICE
PRULONG_DEVICE void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }
PRULONG_DEVICE void load_box(Shared to, const TensorMap& map, Shared barrier, int column, int row, int head,
                             bool keep) {
  // Cache policies as createpolicy.fractional makes them for the whole access: evict_last and evict_normal.
  const uint64_t policy = keep ? 0x14f0000000000000ull : 0x1000000000000000ull;
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(column), "r"(row), "r"(head), "l"(policy)
      : "memory");
}
PRULONG_DEVICE void store_box(const TensorMap& map, Shared from, int column, int row, int head) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(from), "r"(column), "r"(row), "r"(head)
               : "memory");
}
PRULONG_DEVICE void load_bulk(Shared to, const void* from, int bytes, Shared barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}
PRULONG_DEVICE void add_bulk(float* to, Shared from, int bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from),
               "r"(bytes)
               : "memory");
}
PRULONG_DEVICE void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kPending>
PRULONG_DEVICE void wait_stores_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
PRULONG_DEVICE void wait_stores() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}
#else
namespace emulation {
void wait_stores(int pending, bool only_read, Site site);
}
template <int kPending>
void wait_stores_read(Site site) {
  emulation::wait_stores(kPending, true, site);
}
template <int kPending>
void wait_stores(Site site) {
  emulation::wait_stores(kPending, false, site);
}
#endif

}  // namespace prulong::kernels::device
