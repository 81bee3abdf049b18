// SPDX-License-Identifier: MIT
#include "engine/kv_cache.h"

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <limits>
#include <random>

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

/// Two layers with a global and a local head each, pages of 4 entries: 20 pages.
KvCacheOptions small() {
  KvCacheOptions options;
  options.layers = 2;
  options.kv_heads = 2;
  options.head_dim = 2;
  options.is_global = {1, 0, 0, 1};
  options.sink = 2;
  options.window = 5;
  options.page = 4;
  options.bytes = 20 * 64;
  return options;
}

std::string refusal(void (*change)(KvCacheOptions&)) {
  KvCacheOptions options = small();
  change(options);
  return error_of([&] { KvCache cache(options); });
}

bool equal(const at::Tensor& a, const at::Tensor& b) { return a.sizes() == b.sizes() && a.equal(b); }

}  // namespace

TEST_CASE("A cache refuses options that make no sense") {
  CHECK(refusal([](KvCacheOptions&) {}) == "no error");
  CHECK(refusal([](KvCacheOptions& o) { o.layers = 0; }) == "kv cache: layers must be from 1 to 65536, got 0");
  CHECK(refusal([](KvCacheOptions& o) { o.kv_heads = -1; }) == "kv cache: kv_heads must be from 1 to 65536, got -1");
  CHECK(refusal([](KvCacheOptions& o) { o.head_dim = 0; }) == "kv cache: head_dim must be from 1 to 65536, got 0");
  CHECK(refusal([](KvCacheOptions& o) { o.sink = -1; }) == "kv cache: sink must be from 0 to 2147483647, got -1");
  CHECK(refusal([](KvCacheOptions& o) { o.window = 0; }) == "kv cache: window must be from 1 to 2147483647, got 0");
  CHECK(refusal([](KvCacheOptions& o) { o.slack = -1; }) == "kv cache: slack must be from 0 to 2147483647, got -1");
  const std::string page = "kv cache: page must be a power of two from 1 to 1024, got ";
  CHECK(refusal([](KvCacheOptions& o) { o.page = 0; }) == page + "0");
  CHECK(refusal([](KvCacheOptions& o) { o.page = 12; }) == page + "12");
  CHECK(refusal([](KvCacheOptions& o) { o.page = 2048; }) == page + "2048");
  CHECK(refusal([](KvCacheOptions& o) { o.page = std::numeric_limits<int64_t>::min(); }) ==
        page + "-9223372036854775808");
  CHECK(refusal([](KvCacheOptions& o) { o.bytes = 4 * 64 - 1; }) ==
        "kv cache: bytes must hold a page of each of the 4 heads, 256 bytes; got 255");
  CHECK(refusal([](KvCacheOptions& o) { o.bytes = 4 * 64; }) == "no error");
  CHECK(refusal([](KvCacheOptions& o) { o.is_global = {1}; }) ==
        "kv cache: is_global must have layers * kv_heads = 4 values, got 1");
  CHECK(refusal([](KvCacheOptions& o) { o.dtype = at::kLong; }) ==
        "kv cache: dtype must be float32, bfloat16 or float16 (or float64 on a CPU), got Long");
  CHECK(refusal([](KvCacheOptions& o) { o.device = at::kMeta; }) == "kv cache: device must be cpu or cuda, got meta");
  CHECK(refusal([](KvCacheOptions& o) { o.bytes = std::numeric_limits<int64_t>::max(); }) == "no error");
  CHECK_THAT(refusal([](KvCacheOptions& o) {
               o.bytes = std::numeric_limits<int64_t>::max();
               o.page = 1024;
               o.head_dim = 65536;
             }),
             ContainsSubstring("no addresses for 576460752034988032 bytes"));
}

TEST_CASE("A cache refuses sequences and steps that are not there") {
  KvCache cache(small());
  const auto a = cache.add(), b = cache.add();
  cache.drop(a);
  const std::string none = "kv cache: there is no sequence 0";
  CHECK(error_of([&] { cache.drop(a); }) == none);
  CHECK(error_of([&] { cache.fork(a); }) == none);
  CHECK(error_of([&] { cache.append({b, a}, {1, 1}); }) == none);
  CHECK(error_of([&] { cache.truncate(a, 0); }) == none);
  CHECK(error_of([&] { cache.tokens(a); }) == none);
  CHECK(error_of([&] { cache.entries(a); }) == none);
  CHECK(error_of([&] { cache.append({b}, {1, 1}); }) == "kv cache: append: 1 sequences, but 2 counts of new tokens");
  CHECK(error_of([&] {
          cache.append({b, b}, {1, 1});
        }) == "kv cache: append: sequence 1 is given twice; give it once a step");
  CHECK_THAT(error_of([&] { cache.append({b}, {-1}); }), ContainsSubstring("got -1 for sequence 1 with 0"));
  CHECK_THAT(error_of([&] { cache.append({b}, {int64_t{1} << 31}); }), ContainsSubstring("got 2147483648 for"));
  CHECK(error_of([&] { cache.entries(2, b, 0); }) == "kv cache: layer must be from 0 to 1, got 2");
  CHECK(error_of([&] { cache.entries(0, b, -1); }) == "kv cache: head must be from 0 to 1, got -1");
  CHECK(cache.tokens(b) == 0);
  CHECK(cache.add() == 2);
}

TEST_CASE("Without pages enough a step is refused, and nothing has changed") {
  KvCache cache(small());
  const auto a = cache.add(), b = cache.add();
  cache.append({a, b}, {9, 3});
  const CacheStep before = cache.append({a, b}, {0, 0});
  const KvCache::Bytes bytes = cache.bytes();
  const int64_t free = cache.free_pages();
  CHECK(free == 20 - 2 * 3 - 2 * 3 - 4);
  // Each layer takes 4 pages for its global head and, while it attends, 4 for the local one, which all come back.
  CHECK(error_of([&] { cache.append({a}, {16}); }) ==
        "kv cache: append: 12 pages are needed, 4 of 20 are free; drop sequences, append fewer tokens at once or make "
        "the cache larger");
  const CacheStep after = cache.append({a, b}, {0, 0});
  CHECK(equal(after.page_table, before.page_table));
  CHECK(equal(after.lengths, before.lengths));
  CHECK(cache.bytes().in_use == bytes.in_use);
  CHECK(cache.bytes().peak == bytes.peak);
  CHECK(cache.bytes().allocated == bytes.allocated);
  CHECK(cache.free_pages() == free);
  CHECK(cache.tokens(a) == 9);
  cache.append({b}, {4});  // others go on
  CHECK(cache.free_pages() == 0);
  cache.drop(b);
  cache.append({a}, {3});
  CHECK(cache.tokens(a) == 12);
}

TEST_CASE("Without memory enough a step is refused, and nothing has changed") {
  KvCacheOptions options = small();
  options.page = 1024;
  options.head_dim = 8192;
  options.bytes = int64_t{64} << 40;
  KvCache cache(options);
  const auto a = cache.add();
  CHECK_THAT(error_of([&] { cache.append({a}, {100'000'000}); }), ContainsSubstring("left on this machine"));
  CHECK(cache.tokens(a) == 0);
  CHECK(cache.entries(a) == 0);
  CHECK(cache.bytes().peak == 0);
  CHECK(cache.free_pages() == cache.pages());
}

TEST_CASE("The page table is made anew only when a list's pages or the sequences change") {
  KvCache cache(small());
  const auto a = cache.add(), b = cache.add();
  const at::Tensor first = cache.append({a, b}, {1, 1}).page_table;
  CHECK(first.sizes() == at::IntArrayRef({2, 2, 2, 16}));
  const CacheStep second = cache.append({a, b}, {1, 2});
  CHECK(second.page_table.is_same(first));
  CHECK(equal(second.lengths, at::tensor({2, 2, 3, 3, 2, 2, 3, 3}, at::kInt).view({2, 2, 2})));
  CHECK(equal(second.cu_seqlens_q, at::tensor({0, 1, 3}, at::kInt)));
  CHECK(second.max_seqlen_q == 2);
  CHECK(!cache.append({b, a}, {0, 0}).page_table.is_same(first));    // another order
  const at::Tensor third = cache.append({b, a}, {2, 0}).page_table;  // b's second page
  CHECK(cache.append({b, a}, {0, 1}).page_table.is_same(third));
  cache.truncate(b, 1);
  CHECK(!cache.append({b, a}, {0, 0}).page_table.is_same(third));
  CHECK(cache.append({b, a}, {0, 0}).page_table.size(3) == 16);
  const CacheStep none = cache.append({}, {});
  CHECK(none.page_table.sizes() == at::IntArrayRef({2, 0, 2, 16}));
  CHECK(none.lengths.sizes() == at::IntArrayRef({2, 0, 2}));
  CHECK(equal(none.cu_seqlens_q, at::tensor({0}, at::kInt)));
  CHECK(none.max_seqlen_q == 0);
}

TEST_CASE("keep refuses local heads and places that are not there") {
  KvCache cache(small());
  const auto a = cache.add();
  cache.append({a}, {6});
  const auto keep = [&](int64_t layer, int64_t head, const at::Tensor& places) {
    return error_of([&] { cache.keep(layer, a, head, places); });
  };
  CHECK_THAT(keep(0, 1, at::arange(3)), ContainsSubstring("keep: head 1 of layer 0 is local"));
  CHECK_THAT(keep(0, 0, at::arange(3).to(at::kInt)), ContainsSubstring("must be [n] int64"));
  CHECK_THAT(keep(0, 0, at::arange(4).view({2, 2})), ContainsSubstring("must be [n] int64"));
  CHECK_THAT(keep(0, 0, at::Tensor()), ContainsSubstring("must be [n] int64"));
  CHECK(keep(0, 0, at::tensor({0, 6}, at::kLong)) ==
        "kv cache: keep: places must rise and be below the head's 6 entries; place 1 is 6 behind 0");
  CHECK_THAT(keep(0, 0, at::tensor({2, 2}, at::kLong)), ContainsSubstring("place 1 is 2 behind 2"));
  CHECK_THAT(keep(0, 0, at::tensor({-1}, at::kLong)), ContainsSubstring("place 0 is -1"));
  CHECK(cache.entries(a) == 24);
  CHECK(keep(0, 0, at::arange(0)) == "no error");
  CHECK(cache.entries(0, a, 0) == 0);
  CHECK(cache.entries(a) == 18);
}

TEST_CASE("truncate says how far it can go") {
  KvCacheOptions options = small();
  options.bytes = 200 * 64;
  KvCache cache(options);
  const auto a = cache.add();
  cache.append({a}, {14});  // the local heads gave back places 4 to 7
  CHECK(cache.entries(0, a, 1) == 10);
  CHECK(error_of([&] { cache.truncate(a, 15); }) == "kv cache: truncate: n must be from 0 to 14, got 15");
  CHECK(error_of([&] { cache.truncate(a, -1); }) == "kv cache: truncate: n must be from 0 to 14, got -1");
  CHECK(error_of([&] { cache.truncate(a, 3); }) ==
        "kv cache: truncate: only the last 2 tokens of sequence 0 can be taken back, not 3: local heads gave back what "
        "the window would hold then; a larger slack keeps more");
  cache.truncate(a, 2);
  CHECK(cache.tokens(a) == 12);
  CHECK(cache.entries(a) == 2 * 12 + 2 * 8);
  cache.truncate(a, 9);  // the sink's pages hold all of it
  CHECK(cache.entries(a) == 4 * 3);
  cache.append({a}, {2});
  cache.keep(0, a, 0, at::tensor({1, 4}, at::kLong));
  cache.append({a}, {1});
  CHECK(
      error_of([&] { cache.truncate(a, 2); }) ==
      "kv cache: truncate: only the last 1 tokens of sequence 0 can be taken back, not 2: entries were evicted since");
  cache.truncate(a, 1);
  CHECK(cache.entries(0, a, 0) == 2);

  options.slack = 7;
  KvCache with_slack(options);
  const auto b = with_slack.add();
  for (int64_t chunk = 1; chunk < 30; ++chunk) {
    with_slack.append({b}, {chunk % 4});
    if (with_slack.tokens(b) < 7) continue;
    with_slack.truncate(b, 7);
    with_slack.append({b}, {7});
  }
}

TEST_CASE("pages_needed bounds every schedule and is reached within a page a head") {
  std::mt19937_64 random(3);
  const auto from = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int run = 0; run < 300; ++run) {
    CAPTURE(run);
    KvCacheOptions options;
    options.layers = from(1, 3);
    options.kv_heads = from(1, 3);
    options.head_dim = 1;
    options.page = int64_t{1} << from(0, 4);
    const int64_t heads = options.layers * options.kv_heads;
    for (int64_t i = 0; i < heads; ++i) options.is_global.push_back(static_cast<uint8_t>(from(0, 1)));
    options.sink = from(0, 10);
    options.window = from(1, 20);
    options.slack = from(0, 1) * from(0, 6);
    const int64_t page_bytes = options.page * 8, tokens = from(0, 80), chunk = from(1, 40);
    options.bytes = heads * (tokens / options.page + 2) * page_bytes;
    const int64_t needed = KvCache(options).pages_needed(tokens, chunk);
    int64_t most = 0;
    const auto play = [&](auto next) {
      KvCache cache(options);
      const auto a = cache.add();
      while (cache.tokens(a) < tokens) {
        const int64_t left = tokens - cache.tokens(a);
        cache.append({a}, {std::min(left, next(left))});
      }
      most = std::max(most, cache.bytes().peak / page_bytes);
    };
    for (int64_t last = 1; last <= chunk; ++last) {
      play([&](int64_t left) { return left > last ? std::min(left - last, chunk) : left; });
    }
    for (int i = 0; i < 5; ++i) play([&](int64_t) { return from(1, chunk); });
    CHECK(most <= needed);
    CHECK(most >= needed - heads);
  }
  const KvCache cache(small());
  CHECK(cache.pages_needed(0, 1) == 0);
  CHECK(error_of([&] { cache.pages_needed(-1, 1); }) == "kv cache: tokens must be from 0 to 2147483647, got -1");
  CHECK(error_of([&] { cache.pages_needed(1, 0); }) == "kv cache: chunk must be from 1 to 2147483647, got 0");
  CHECK(cache.pages_needed(2147483647, 2147483647) == int64_t{3} * (int64_t{1} << 29) + 3);
}

TEST_CASE("On a GPU pages are read, moved and given back as on a CPU") {
  if (!at::globalContext().hasCUDA()) {
    WARN("no GPU: not tested");
    return;
  }
  KvCacheOptions options = small();
  options.page = 128;
  options.head_dim = 64;
  options.dtype = at::kBFloat16;
  options.device = at::kCUDA;
  options.bytes = int64_t{4} << 30;
  KvCache cache(options);
  CHECK(cache.bytes().allocated == 0);
  const void* address = cache.k_pages().const_data_ptr();
  const auto a = cache.add();
  const CacheStep step = cache.append({a}, {100000});
  CHECK(step.page_table.is_cuda());
  CHECK(step.lengths.cpu()[1][0][1].item<int64_t>() == 100000);
  CHECK(step.cu_seqlens_q.cpu()[1].item<int64_t>() == 100000);
  const int64_t allocated = cache.bytes().allocated;
  CHECK(allocated >= cache.bytes().peak);
  // The pages of layer 0's global head, written through their table.
  const at::Tensor pages = step.page_table[0][0][0].narrow(0, 0, 782).to(at::kLong);
  // Numbers that bfloat16 holds exactly.
  const at::Tensor values = at::arange(782, pages.options().dtype(at::kFloat)).remainder(251).to(at::kBFloat16);
  at::Tensor k = cache.k_pages();
  k.index_copy_(0, pages, values.view({782, 1, 1}).expand({782, 128, 64}).contiguous());
  const auto b = cache.fork(a);
  cache.keep(0, a, 0, at::arange(50000, 50300, at::TensorOptions(at::kCUDA).dtype(at::kLong)));
  const CacheStep kept = cache.append({a, b}, {1, 0});
  cache.copy_pages(kept, 0);
  const at::Tensor of_a = k.index_select(0, kept.page_table[0][0][0].narrow(0, 0, 3).to(at::kLong)).cpu();
  for (const int64_t row : {0, 150, 299}) {
    CHECK(of_a[row / 128][row % 128][5].item<float>() == static_cast<float>((50000 + row) / 128 % 251));
  }
  CHECK(equal(k.index_select(0, kept.page_table[0][1][0].narrow(0, 0, 782).to(at::kLong))[700].cpu(),
              at::full({128, 64}, 700 % 251, at::kBFloat16)));
  cache.drop(a);
  cache.drop(b);
  CHECK(cache.free_pages() == cache.pages());
  CHECK(cache.bytes().allocated >= allocated);
  cache.trim();
  CHECK(cache.bytes().allocated == 0);
  const auto c = cache.add();
  cache.append({c}, {500});
  CHECK(cache.bytes().allocated > 0);
  CHECK(cache.k_pages().const_data_ptr() == address);
}
