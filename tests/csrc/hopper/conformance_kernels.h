// SPDX-License-Identifier: MIT
#pragma once

#include "csrc/hopper/device/arithmetic.h"
#include "csrc/hopper/device/barrier.h"
#include "csrc/hopper/device/copy.h"
#include "csrc/hopper/device/memory.h"
#include "csrc/hopper/device/thread.h"
#include "csrc/hopper/device/wgmma.h"

/// Small kernels that use one group of the device layer each, for conformance.h.
namespace prulong::kernels::conformance {

using namespace device;  // NOLINT: the vocabulary of this folder's kernels

/// What every kernel gets.
struct Arguments {
  TensorMap map;
  const void* in[2];
  void* out;
  int numbers[4];
};

/// Launch of a kernel: struct with run(arguments).
template <int kThreadCount, int kShared = 0, int kBlockCount = 1>
struct Launch {
  static constexpr int kThreads = kThreadCount, kSharedBytes = kShared, kBlocks = kBlockCount;
};

/// out [blocks][threads][6].
struct Identity : Launch<256, 1024, 3> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const int t = thread_index();
    int* const out = static_cast<int*>(a.out) + (block_index() * kThreads + t) * 6;
    store_global(out, t);
    store_global(out + 1, block_count());
    store_global(out + 2, warp_index());
    store_global(out + 3, lane_index());
    store_global(out + 4, warpgroup_index());
    store_global(out + 5, static_cast<int>(shared_memory() % 1024));
  }
};

/// out [threads][7]: elections, then what the lane gets of the warp's values 100 warp + lane.
struct WarpFunctions : Launch<64> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const int lane = lane_index(), value = 100 * warp_index() + lane;
    int* const out = static_cast<int*>(a.out) + thread_index() * 7;
    store_global(out, elect_one() ? 1 : 0);
    store_global(out + 1, elect_one() ? 1 : 0);
    store_global(out + 2, static_cast<int>(shuffle_xor(static_cast<float>(value), 1)));
    store_global(out + 3, static_cast<int>(shuffle_xor(static_cast<float>(value), 18)));
    store_global(out + 4, shuffle(value, 5));
    store_global(out + 5, any(value == 107) ? 1 : 0);
    store_global(out + 6, any(value < 0) ? 1 : 0);
    sync_warp();
  }
};

/// in: numbers[0] triples of floats; out: per triple (x, y, z) exp2 x, log2 y, x y + z, max(x, z), x and z packed to
/// bfloat16 and to float16, and what comes out of those.
struct Arithmetic : Launch<128> {
  template <ElementType kType>
  static PRULONG_DEVICE void store_packed(float* out, float x, float z) {
    const uint32_t word = pack<kType>(x, z);
    store_global(reinterpret_cast<uint32_t*>(out), word);
    store_global(out + 1, unpack_low<kType>(word));
    store_global(out + 2, unpack_high<kType>(word));
  }
  static PRULONG_DEVICE void run(const Arguments& a) {
    for (int i = thread_index(); i < a.numbers[0]; i += kThreads) {
      const float* const in = static_cast<const float*>(a.in[0]) + 3 * i;
      const float x = load_global(in), y = load_global(in + 1), z = load_global(in + 2);
      float* const out = static_cast<float*>(a.out) + 10 * i;
      store_global(out, exp2_fast(x));
      store_global(out + 1, log2_fast(y));
      store_global(out + 2, fused(x, y, z));
      store_global(out + 3, largest(x, z));
      store_packed<ElementType::kBFloat16>(out + 4, x, z);
      store_packed<ElementType::kFloat16>(out + 7, x, z);
    }
  }
};

struct Word2 {
  uint32_t x, y;
};

/// in: 4 words per thread, stored in all widths and read in others; out: 12 words per thread, each 4 the input.
struct SharedAccess : Launch<32, 3 * 512> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const uint32_t* const in = static_cast<const uint32_t*>(a.in[0]) + 4 * thread_index();
    uint32_t* const out = static_cast<uint32_t*>(a.out) + 12 * thread_index();
    const Shared one = shared_memory() + 16 * thread_index(), two = one + 512, four = two + 512;
    for (int i = 0; i < 4; ++i) store_shared(one + 4 * i, load_global(in + i));
    for (int i = 0; i < 4; i += 2) store_shared(two + 4 * i, Word2{load_global(in + i), load_global(in + i + 1)});
    store_shared(four, Word4{load_global(in), load_global(in + 1), load_global(in + 2), load_global(in + 3)});
    const Word4 words = load_shared<Word4>(one);
    store_global(out, words.x);
    store_global(out + 1, words.y);
    store_global(out + 2, words.z);
    store_global(out + 3, words.w);
    for (int i = 0; i < 4; ++i) store_global(out + 4 + i, load_shared<uint32_t>(two + 4 * i));
    for (int i = 0; i < 4; i += 2) {
      const Word2 pair = load_shared<Word2>(four + 4 * i);
      store_global(out + 8 + i, pair.x);
      store_global(out + 9 + i, pair.y);
    }
  }
};

/// in, out: 128 words. Stores: words (lane, i) in, the matrices [4][8][8] as they lie in memory out; loads: the other
/// way round. Rows lie apart and out of order.
template <bool kStore, bool kTransposed>
struct Matrices : Launch<32, 32 * 32> {
  static PRULONG_DEVICE Shared row_of(int lane) { return shared_memory() + 32 * (lane * 5 % 32); }
  static PRULONG_DEVICE void run(const Arguments& a) {
    const int lane = lane_index();
    const uint32_t* const in = static_cast<const uint32_t*>(a.in[0]) + 4 * lane;
    Word4 words = {load_global(in), load_global(in + 1), load_global(in + 2), load_global(in + 3)};
    const Shared row = row_of(lane);
    if (!kStore) {
      store_shared(row, words);
      sync_warp();
      words = kTransposed ? load_matrices_transposed(row) : load_matrices(row);
    } else {
      if (kTransposed) {
        store_matrices_transposed(row, words);
      } else {
        store_matrices(row, words);
      }
      sync_warp();
      words = load_shared<Word4>(row);
    }
    uint32_t* const out = static_cast<uint32_t*>(a.out) + 4 * lane;
    store_global(out, words.x);
    store_global(out + 1, words.y);
    store_global(out + 2, words.z);
    store_global(out + 3, words.w);
  }
};

/// Two warps hand on a number numbers[0] times each; each turn is 3 x + warp. out: the last number.
struct MemoryBarriers : Launch<64, 64> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const Shared number = shared_memory(), turns = number + 16;
    const int warp = warp_index();
    if (thread_index() == 0) {
      init_barrier(turns, 32);
      init_barrier(turns + 8, 1);
      fence_barrier_init();
      store_shared(number, 1u);
    }
    sync_cta();
    for (int round = 0; round < a.numbers[0]; ++round) {
      // Warp 0 begins; its barrier, the second, counts warp 1's turns.
      wait(turns + 8 * (1 - warp), warp == 0 ? round % 2 ^ 1 : round % 2);
      if (lane_index() == 0) {
        const uint32_t x = load_shared<uint32_t>(number);
        store_shared(number, 3 * x + static_cast<uint32_t>(warp));
      }
      if (warp == 0) {
        arrive(turns);
      } else if (lane_index() == 0) {
        arrive(turns + 8);
      }
    }
    sync_cta();
    if (thread_index() == 0) store_global(static_cast<uint32_t*>(a.out), load_shared<uint32_t>(number));
  }
};

/// Warps 0 and 1 write, 2 and 3 read and write back; out [64]: 7 thread + 1.
struct NamedBarriers : Launch<128, 256> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const int t = thread_index();
    const Shared word = shared_memory() + 4 * (t % 64);
    if (t < 64) {
      store_shared(word, 7 * t);
      arrive_named(1, 128);
      sync_named(2, 128);
      store_global(static_cast<int*>(a.out) + t, load_shared<int>(word));
    } else {
      sync_named(1, 128);
      store_shared(word, load_shared<int>(word) + 1);
      arrive_named(2, 128);
    }
  }
};

/// Loads the box at numbers[0..2] and copies the numbers[3] bytes as they lie to out.
struct LoadBox : Launch<128, 32768 + 64> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const Shared tile = shared_memory(), barrier = tile + 32768;
    if (thread_index() == 0) {
      prefetch(a.map);
      init_barrier(barrier, 1);
      fence_barrier_init();
    }
    sync_cta();
    if (warp_index() == 0 && elect_one()) {
      arrive_expecting(barrier, a.numbers[3]);
      load_box(tile, a.map, barrier, a.numbers[0], a.numbers[1], a.numbers[2], true);
    }
    wait(barrier, 0);
    for (int i = thread_index(); i < a.numbers[3] / 4; i += kThreads) {
      store_global(static_cast<uint32_t*>(a.out) + i, load_shared<uint32_t>(tile + 4 * i));
    }
  }
};

/// Copies numbers[3] bytes from in to shared memory as they are and stores them as the box at numbers[0..2].
struct StoreBox : Launch<128, 32768> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const Shared tile = shared_memory();
    for (int i = thread_index(); i < a.numbers[3] / 4; i += kThreads) {
      store_shared(tile + 4 * i, load_global(static_cast<const uint32_t*>(a.in[0]) + i));
    }
    fence_async_proxy();
    sync_cta();
    if (warp_index() == 1 && elect_one()) {
      store_box(a.map, tile, a.numbers[0], a.numbers[1], a.numbers[2]);
      commit_stores();
      wait_stores<0>();
    }
  }
};

/// Each of three blocks loads numbers[0] floats and adds them to out, one half after the other.
struct BulkCopies : Launch<32, 4096 + 64, 3> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    const Shared data = shared_memory(), barrier = data + 4096;
    if (!elect_one()) return;
    init_barrier(barrier, 1);
    fence_barrier_init();
    const int bytes = 4 * a.numbers[0];
    arrive_expecting(barrier, bytes);
    load_bulk(data, a.in[0], bytes, barrier);
    wait(barrier, 0);
    float* const out = static_cast<float*>(a.out);
    add_bulk(out, data, bytes / 2);
    commit_stores();
    add_bulk(out + a.numbers[0] / 2, data + bytes / 2, bytes / 2);
    commit_stores();
    wait_stores_read<1>();
    wait_stores<0>();
  }
};

/// out: a counter, a semaphore, three sums, then what every thread counted. Block b adds to block b - 1's sum.
struct GlobalAtomics : Launch<64, 0, 3> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    int* const out = static_cast<int*>(a.out);
    const int ticket = thread_index() % 2 == 0 ? fetch_add(out, 1) : fetch_add_ordered(out, 1);
    store_global(out + 5 + block_index() * kThreads + thread_index(), ticket);
    if (thread_index() != 0) return;
    const int block = block_index();
    while (load_acquire(out + 1) != block) {
    }
    const int before = block == 0 ? 0 : load_global(out + 1 + block);
    store_global(out + 2 + block, 10 * before + block + 1);
    add_release(out + 1, 1);
  }
};

/// out [threads]: the registers of the thread's warpgroup.
struct Registers : Launch<384> {
  static PRULONG_DEVICE void run(const Arguments& a) {
    int* const out = static_cast<int*>(a.out) + thread_index();
    if (warpgroup_index() == 0) {
      decrease_registers<24>();
      store_global(out, 24);
    } else {
      increase_registers<240>();
      store_global(out, 240);
    }
  }
};

constexpr int kProductDepth = 128;

/// D [64][kColumns] = A B^T + numbers[0], with A [64][128] and B [kColumns][128] of 16 bits: in shared memory with the
/// given majors, or A in registers. Two groups, the second on top of the first.
template <ElementType kType, int kColumns, Major kMajorA, Major kMajorB, bool kRegisters>
struct Products : Launch<128, 16384 + 32768> {
  static constexpr int kMnPanel = kProductDepth * 128;  // bytes

  template <Major kMajor>
  static PRULONG_DEVICE void fill(Shared base, const uint16_t* x, int rows) {
    for (int i = thread_index(); i < rows * kProductDepth / 8; i += kThreads) {
      if (kMajor == Major::kK) {
        const int row = i / 16, chunk = i % 16;
        const Word4 words = load_global(reinterpret_cast<const Word4*>(x) + i);
        store_shared(base + chunk / 8 * rows * 128 + row * 128 + ((chunk ^ row) % 8) * 16, words);
      } else {
        const int k = i % kProductDepth, chunk = i / kProductDepth;
        uint32_t words[4];
        for (int j = 0; j < 4; ++j) {
          const uint16_t* const low = x + (8 * chunk + 2 * j) * kProductDepth + k;
          words[j] = load_global(low) | static_cast<uint32_t>(load_global(low + kProductDepth)) << 16;
        }
        store_shared(base + chunk / 8 * kMnPanel + k * 128 + ((chunk ^ k) % 8) * 16,
                     Word4{words[0], words[1], words[2], words[3]});
      }
    }
  }
  /// Slice `s` of 16 k.
  template <Major kMajor>
  static PRULONG_DEVICE Descriptor describe(Shared base, int rows, int s) {
    if (kMajor == Major::kMN) return describe_mn_major(base, kMnPanel).advanced(2048 * s);
    return describe_k_major(base + s / 4 * rows * 128).advanced(s % 4 * 32);
  }

  static PRULONG_DEVICE void run(const Arguments& arguments) {
    const Shared a = shared_memory(), b = a + 16384;
    const auto* const global_a = static_cast<const uint16_t*>(arguments.in[0]);
    if (!kRegisters) fill<kMajorA>(a, global_a, 64);
    fill<kMajorB>(b, static_cast<const uint16_t*>(arguments.in[1]), kColumns);
    fence_async_proxy();
    sync_cta();

    const int lane = lane_index(), row = 16 * warp_index() + lane / 4;
    constexpr int kSlices = kProductDepth / 16;
    Operand<kSlices> operand;
    if (kRegisters) {
      PRULONG_UNROLL
      for (int s = 0; s < kSlices; ++s) {
        PRULONG_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int k = 16 * s + 8 * (i / 2) + 2 * (lane % 4);
          operand.word(s, i) =
              load_global(reinterpret_cast<const uint32_t*>(global_a + (row + 8 * (i % 2)) * kProductDepth + k));
        }
      }
    }
    Accumulator<kColumns> sum;
    PRULONG_UNROLL
    for (int i = 0; i < sum.kSize; ++i) sum[i] = static_cast<float>(arguments.numbers[0]);
    begin_matrices(sum);
    if constexpr (kRegisters) begin_matrices(operand);
    PRULONG_UNROLL
    for (int s = 0; s < kSlices; ++s) {
      const bool accumulate = s > 0 || arguments.numbers[0] != 0;
      if constexpr (kRegisters) {
        multiply<kType, kMajorB>(sum, operand, s, describe<kMajorB>(b, kColumns, s), accumulate);
      } else {
        multiply<kType, kMajorA, kMajorB>(sum, describe<kMajorA>(a, 64, s), describe<kMajorB>(b, kColumns, s),
                                          accumulate);
      }
      if (s == kSlices / 2) commit_matrices();
    }
    commit_matrices();
    wait_matrices<1>();
    if constexpr (kRegisters) {
      wait_matrices<0>(sum, operand);
    } else {
      wait_matrices<0>(sum);
    }
    float* const out = static_cast<float*>(arguments.out);
    PRULONG_UNROLL
    for (int i = 0; i < sum.kSize; ++i) {
      store_global(out + (row + 8 * (i / 2 % 2)) * kColumns + 8 * (i / 4) + 2 * (lane % 4) + i % 2, sum[i]);
    }
  }
};

}  // namespace prulong::kernels::conformance
