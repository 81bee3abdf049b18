// SPDX-License-Identifier: MIT
//
// The decode kernel alone on a GPU, without torch: checks it against double-precision sums, then times it.
// Arguments: none, "check", "time", or "once": one case of 131,072 entries, for a profiler.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "csrc/hopper/decode/decode_launch.h"
#include "tests/csrc/hopper/gpu_arrays.h"

using namespace prulong::kernels;  // NOLINT

struct Case {
  int dim, group;
  std::vector<char> is_global;            // by KV head
  std::vector<int> q_lengths;             // by sequence
  std::vector<std::vector<int>> lengths;  // by sequence and KV head
  Locality locality = {128, 1024};
};

std::vector<int> flat(const Case& c) {
  std::vector<int> all;
  for (const auto& of_heads : c.lengths) all.insert(all.end(), of_heads.begin(), of_heads.end());
  return all;
}
int pages_of(int length) { return (length + kKeyBlock - 1) / kKeyBlock; }
int pool_of(const Case& c) {
  int pages = 1;
  for (const int length : flat(c)) pages += pages_of(length);
  return pages;
}

// A case in GPU memory: pages in random order, NaN behind every list's end.
struct Problem {
  Case c;
  int tokens, places;
  std::vector<int> bounds, table;
  Array<Element> q, k, v, out;
  Array<float> lse, partial_out, partial_lse;
  Array<int> q_bounds, page_table, lengths, arrivals;
  Array<char> is_global;

  Problem(const Case& from, int processors, uint32_t seed)
      : c(from),
        tokens(std::accumulate(c.q_lengths.begin(), c.q_lengths.end(), 0)),
        places(1),
        bounds(1, 0),
        q(size_t(tokens) * heads() * c.dim),
        k(size_t(pool_of(c)) * kKeyBlock * c.dim),
        v(k.size),
        out(q.size),
        lse(size_t(tokens) * heads()),
        partial_out(size_t(2) * processors * kDecodeRows * c.dim),
        partial_lse(size_t(2) * processors * kDecodeRows),
        q_bounds((std::partial_sum(c.q_lengths.begin(), c.q_lengths.end(), std::back_inserter(bounds)), bounds)),
        page_table(make_table(seed)),
        lengths(flat(c)),
        arrivals(std::vector<int>(processors, 0)),
        is_global(c.is_global) {
    fill<<<1024, 256>>>(q.data, int64_t(q.size), seed, 1);
    fill<<<1024, 256>>>(k.data, int64_t(k.size), seed + 1, 1);
    fill<<<1024, 256>>>(v.data, int64_t(v.size), seed + 2, 1);
    const std::vector<int> all = flat(c);
    for (size_t n = 0; n < all.size(); ++n) {
      const int rest = all[n] % kKeyBlock;
      if (rest == 0) continue;
      const size_t row = size_t(table[n * places + all[n] / kKeyBlock]) * kKeyBlock + rest;
      for (Array<Element>* pool : {&k, &v}) {
        OK(cudaMemset(pool->data + row * c.dim, 0xff, size_t(kKeyBlock - rest) * c.dim * sizeof(Element)));
      }
    }
  }
  int heads() const { return c.group * int(c.is_global.size()); }
  const std::vector<int>& make_table(uint32_t seed) {
    const std::vector<int> all = flat(c);
    for (const int length : all) places = std::max(places, pages_of(length));
    std::vector<int> order(pool_of(c));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    table.assign(all.size() * places, -1);
    for (size_t n = 0; n < all.size(); ++n) {
      for (int place = 0; place < pages_of(all[n]); ++place) {
        table[n * places + place] = order.back();
        order.pop_back();
      }
    }
    return table;
  }
  DecodeParams params() const {
    DecodeParams p = {};
    p.batch.documents = int(c.q_lengths.size());
    p.batch.q_tokens = tokens;
    p.batch.k_tokens = places * kKeyBlock;
    p.batch.query_heads = heads();
    p.batch.kv_heads = int(c.is_global.size());
    p.batch.head_dim = c.dim;
    p.batch.locality = c.locality;
    p.batch.q_bounds = q_bounds.data;
    p.batch.is_global = reinterpret_cast<const bool*>(is_global.data);
    p.batch.paged = {page_table.data, lengths.data, places, pool_of(c)};
    p.type = ElementType::kBFloat16;
    p.q = q.data;
    p.k_pages = k.data;
    p.v_pages = v.data;
    p.scale = float(1 / std::sqrt(double(c.dim)));
    p.out = out.data;
    p.lse = lse.data;
    p.processors = int(arrivals.size);
    p.partial_out = partial_out.data;
    p.partial_lse = partial_lse.data;
    p.arrivals = arrivals.data;
    return p;
  }
};

// The mathematics: a block per row, a thread per element of the head.
__global__ void reference(DecodeParams p, double* out, double* lse) {
  const Batch& b = p.batch;
  const int token = blockIdx.x / b.query_heads, head = blockIdx.x % b.query_heads, kv_head = head / b.group();
  int s = 0;
  while (b.q_bounds[s + 1] <= token) ++s;
  const int list = s * b.kv_heads + kv_head, position = b.paged.lengths[list] - b.q_bounds[s + 1] + token;
  const auto* const q = static_cast<const Element*>(p.q) + int64_t{blockIdx.x} * b.head_dim;
  double total = 0, sum = 0;
  for (int j = 0; j <= position; ++j) {
    if (!visible(b.is_global[kv_head] ? Branch::kGlobal : Branch::kLocal, b.locality, position, j)) continue;
    const int64_t row = int64_t{b.paged.row(list)[j / kKeyBlock]} * kKeyBlock + j % kKeyBlock;
    const auto* const key = static_cast<const Element*>(p.k_pages) + row * b.head_dim;
    double score = 0;
    for (int e = 0; e < b.head_dim; ++e) score += double(__bfloat162float(q[e])) * double(__bfloat162float(key[e]));
    const double weight = exp(score * double(p.scale));
    total += weight;
    sum += weight * double(__bfloat162float(static_cast<const Element*>(p.v_pages)[row * b.head_dim + threadIdx.x]));
  }
  out[int64_t{blockIdx.x} * b.head_dim + threadIdx.x] = sum / total;
  if (threadIdx.x == 0) lse[int64_t{head} * b.q_tokens + token] = log(total);
}

bool check(const Case& c, int processors, uint32_t seed) {
  Problem p(c, processors, seed);
  OK(launch_decode(p.params(), nullptr));
  OK(launch_decode(p.params(), nullptr));  // the counters are as they were
  Array<double> out(p.out.size), lse(p.lse.size);
  reference<<<p.tokens * p.heads(), c.dim>>>(p.params(), out.data, lse.data);
  OK(cudaDeviceSynchronize());
  const auto got = p.out.host();
  const auto want = out.host();
  double error2 = 0, norm2 = 0, worst_lse = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = double(__bfloat162float(got[i])) - want[i];
    error2 += difference * difference;
    norm2 += want[i] * want[i];
  }
  const auto got_lse = p.lse.host();
  const auto want_lse = lse.host();
  for (size_t i = 0; i < got_lse.size(); ++i) {
    const double difference = std::fabs(double(got_lse[i]) - want_lse[i]);
    if (!(difference <= worst_lse)) worst_lse = difference;
  }
  const double relative = std::sqrt(error2 / norm2);
  const bool good = relative <= 4e-3 && worst_lse <= 2e-4;
  std::printf("  %s D %3d, group %d, %d processors: relative error %.2e, lse %.2e\n", good ? "ok  " : "FAIL", c.dim,
              c.group, processors, relative, worst_lse);
  return good;
}

bool check_all(int processors) {
  bool good = true;
  for (const int dim : {64, 128}) {
    for (const int count : {processors, 3}) {
      good = check({dim, 4, {1, 0, 1}, {1, 0, 16}, {{900, 640, 1}, {300, 0, 77}, {129, 16, 2128}}, {100, 130}}, count,
                   5) &&
             good;
      good = check({dim, 8, {1, 0}, {1, 3}, {{9000, 1300}, {5, 411}}}, count, 6) && good;
      good = check({dim, 1, {0, 0, 1}, {2, 2}, {{700, 400, 3000}, {2, 1111, 256}}, {0, 50}}, count, 7) && good;
    }
  }
  return good;
}

// Times a case: several copies of it in turn, so that none lies in the L2 cache.
void time_case(const char* name, const Case& c, int processors) {
  double bytes = 0;
  for (const auto& of_heads : c.lengths) {
    for (size_t h = 0; h < of_heads.size(); ++h) {
      const int seen = c.is_global[h] ? of_heads[h] : std::min(of_heads[h], c.locality.sink + c.locality.window);
      bytes += 4.0 * c.dim * seen;
    }
  }
  const int copies = std::max(1, std::min(24, int(600e6 / bytes)));
  std::vector<Problem*> problems;
  for (int n = 0; n < copies; ++n) problems.push_back(new Problem(c, processors, 100 + n));
  cudaStream_t stream;
  OK(cudaStreamCreate(&stream));
  OK(launch_decode(problems[0]->params(), stream));
  OK(cudaDeviceSynchronize());
  const int calls = std::max(24, copies);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int n = 0; n < calls; ++n) OK(launch_decode(problems[n % copies]->params(), stream));
  OK(cudaStreamEndCapture(stream, &graph));
  OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int n = 0; n < 11; ++n) {
    OK(cudaEventRecord(begin, stream));
    OK(cudaGraphLaunch(exec, stream));
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    float ms;
    OK(cudaEventElapsedTime(&ms, begin, end));
    times.push_back(ms / calls);
  }
  std::nth_element(times.begin(), times.begin() + 5, times.end());
  std::printf("D %3d %-28s %9.2f us %6.0f GB/s\n", c.dim, name, times[5] * 1e3, bytes / times[5] * 1e-6);
  std::fflush(stdout);
  for (Problem* p : problems) delete p;
  OK(cudaGraphExecDestroy(exec));
  OK(cudaGraphDestroy(graph));
}

Case uniform(int dim, int sequences, int length, const std::vector<char>& is_global, int tokens = 1) {
  Case c = {dim, 4, is_global, std::vector<int>(sequences, tokens), {}};
  for (int s = 0; s < sequences; ++s) {
    c.lengths.emplace_back();
    for (const char flag : is_global)
      c.lengths.back().push_back(flag ? length : std::min(length, 128 + 1024 + tokens - 1));
  }
  return c;
}

void time_all(int processors) {
  const std::vector<char> global(8, 1), mixed = {0, 0, 1, 0, 0, 0, 1, 0};
  for (const int dim : {128, 64}) {
    time_case("1 x 2048", uniform(dim, 1, 2048, global), processors);
    time_case("1 x 8192", uniform(dim, 1, 8192, global), processors);
    time_case("1 x 131072", uniform(dim, 1, 131072, global), processors);
    time_case("1 x 131072, 6 of 8 local", uniform(dim, 1, 131072, mixed), processors);
    time_case("4 x 131072", uniform(dim, 4, 131072, global), processors);
    time_case("16 x 32768", uniform(dim, 16, 32768, global), processors);
    time_case("16 x 32768, 6 of 8 local", uniform(dim, 16, 32768, mixed), processors);
    time_case("64 x 1024", uniform(dim, 64, 1024, global), processors);
    time_case("8 x 32768, 8 tokens", uniform(dim, 8, 32768, global, 8), processors);
    time_case("8 x 32768, 16 tokens", uniform(dim, 8, 32768, global, 16), processors);
  }
}

int main(int argc, char** argv) {
  int processors = 0;
  OK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  const auto wanted = [&](const char* what) { return argc < 2 || std::strcmp(argv[1], what) == 0; };
  bool good = true;
  if (wanted("check")) {
    good = check_all(processors);
    std::printf(good ? "all correct\n" : "WRONG RESULTS\n");
    std::fflush(stdout);
  }
  if (wanted("time")) time_all(processors);
  if (argc > 1 && wanted("once")) {
    Problem p(uniform(128, 1, 131072, std::vector<char>(8, 1)), processors, 5);
    for (int n = 0; n < 2; ++n) OK(launch_decode(p.params(), nullptr));
    OK(cudaDeviceSynchronize());
  }
  return good ? 0 : 1;
}
