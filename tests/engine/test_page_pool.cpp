// SPDX-License-Identifier: MIT
#include "engine/page_pool.h"

#include <ATen/ops/zeros.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <random>
#include <set>

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

/// Bytes of this process's memory that are really there.
int64_t resident_bytes() {
  int64_t pages = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

constexpr int64_t kMib = int64_t{1} << 20;

}  // namespace

TEST_CASE("A set of numbers finds its lowest one") {
  NumberSet set;
  std::set<int64_t> plain;
  std::mt19937_64 random(1);
  for (int i = 0; i < 20000; ++i) {
    const auto number = static_cast<int64_t>(random() % (i % 2 == 0 ? 300000 : 130));
    if (plain.insert(number).second) {
      set.insert(number);
    } else {
      plain.erase(number);
      set.erase(number);
    }
    REQUIRE(set.size() == static_cast<int64_t>(plain.size()));
    if (!plain.empty()) REQUIRE(set.lowest() == *plain.begin());
  }
}

TEST_CASE("Pages are handed out lowest first, and free with their last reference") {
  PagePool pool(10, 4, 2, at::kFloat, at::kCPU);
  CHECK(pool.page_bytes() == 64);
  CHECK(pool.taken_bytes() == 0);
  pool.prepare(3);
  CHECK(pool.taken_bytes() == 2 * ::sysconf(_SC_PAGESIZE));  // a small pool is one piece
  CHECK(pool.take() == 0);
  CHECK(pool.take() == 1);
  CHECK(pool.take() == 2);
  pool.add_reference(0);
  pool.release(0);
  CHECK(pool.references(0) == 1);
  CHECK(pool.free() == 7);
  pool.release(1);
  pool.release(0);
  CHECK(pool.free() == 9);
  CHECK(pool.take() == 0);
  CHECK(pool.take() == 1);
  CHECK(pool.take() == 3);
  CHECK(pool.most_used() == 4);
  pool.trim();
  CHECK(pool.taken_bytes() > 0);
  for (const int32_t page : {0, 1, 2, 3}) pool.release(page);
  pool.trim();
  CHECK(pool.taken_bytes() == 0);
  CHECK(pool.free() == 10);
}

TEST_CASE("Memory comes with the pages in use and goes with trim") {
  // Pages of 640 KiB twice: three and a fifth in a piece of 2 MiB, so some lie in two pieces.
  PagePool pool(1000, 1024, 160, at::kFloat, at::kCPU);
  constexpr int64_t kHalf = 1024 * 160;
  const auto half = [](const at::Tensor& pages, int32_t page) {
    return pages.mutable_data_ptr<float>() + page * kHalf;
  };
  const int64_t at_first = resident_bytes();
  const void* address = pool.k_pages().const_data_ptr();
  std::set<int32_t> held;
  const auto take = [&] {
    pool.prepare(1);
    const int32_t page = pool.take();
    held.insert(page);
    std::fill_n(half(pool.k_pages(), page), kHalf, static_cast<float>(page));
    std::fill_n(half(pool.v_pages(), page), kHalf, static_cast<float>(-page));
  };
  for (int i = 0; i < 60; ++i) take();
  CHECK(*held.rbegin() == 59);
  CHECK(pool.taken_bytes() == 2 * 19 * 2 * kMib);  // 60 * 640 KiB = 18.75 pieces, for keys and for values
  CHECK(resident_bytes() - at_first > 70 * kMib);
  const auto all_there = [&] {
    const auto full_of = [](const float* values, int32_t value) {
      return std::all_of(values, values + kHalf, [&](float is) { return is == static_cast<float>(value); });
    };
    return std::all_of(held.begin(), held.end(), [&](int32_t page) {
      return full_of(half(pool.k_pages(), page), page) && full_of(half(pool.v_pages(), page), -page);
    });
  };

  for (int32_t page = 0; page < 60; ++page) {  // 0 to 9 and 30 to 39 stay, in pieces 0 to 3 and 9 to 12
    if (page / 10 % 3 == 0) continue;
    pool.release(page);
    held.erase(page);
  }
  pool.trim();
  CHECK(pool.free() == 980);
  CHECK(pool.taken_bytes() == 2 * 8 * 2 * kMib);
  CHECK(resident_bytes() - at_first < 40 * kMib);
  CHECK(all_there());

  // What has memory is handed out before what would need more.
  for (int i = 0; i < 4; ++i) take();
  CHECK(held.count(10) + held.count(11) + held.count(29) + held.count(40) == 4);
  CHECK(pool.taken_bytes() == 2 * 8 * 2 * kMib);
  take();
  CHECK(held.count(12) == 1);
  for (int i = 0; i < 20; ++i) take();
  CHECK(all_there());
  CHECK(pool.k_pages().const_data_ptr() == address);
  for (const int32_t page : held) pool.release(page);
  pool.trim();
  CHECK(pool.taken_bytes() == 0);
  CHECK(resident_bytes() - at_first < 10 * kMib);
}

TEST_CASE("Tensors of a pool outlive it") {
  at::Tensor pages;
  {
    PagePool pool(2, 4, 2, at::kDouble, at::kCPU);
    pages = pool.k_pages();
  }
  pages.fill_(1);
  CHECK(pages.sum().item<double>() == 16);
}

TEST_CASE("A pool larger than the machine's memory takes no more than there is") {
  // 64 TiB of addresses.
  PagePool pool(int64_t{1} << 20, 1024, 8192, at::kFloat, at::kCPU);
  CHECK_THROWS_WITH(pool.prepare(pool.free()), ContainsSubstring("more bytes of memory are needed"));
}
