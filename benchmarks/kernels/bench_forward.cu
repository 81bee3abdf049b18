// SPDX-License-Identifier: MIT
//
// The forward kernel alone on a GPU, without torch: checks it against double-precision sums, then times it.
// Arguments: none, "check", "time", or "once": one causal case of 16,384 tokens, for a profiler.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "csrc/hopper/combine.h"
#include "csrc/hopper/forward/forward_launch.h"
#include "csrc/hopper/schedule_plan.h"
#include "tests/csrc/hopper/gpu_arrays.h"

using namespace prulong::kernels;  // NOLINT

struct Case {
  int dim, query_heads, kv_heads;
  Locality locality;
  std::vector<int> bounds;
  std::vector<float> gate;
  float magnitude = 1;
  std::vector<int> nan_documents = {};
  std::vector<int> k_bounds = {};  // empty: bounds
  int processors = 0;
  int section = 0;  // KV heads in a section; 0: the schedule's choice
};

// A case in GPU memory.
struct Problem {
  Case c;
  int q_tokens, k_tokens;
  Array<Element> q, k, v, out, delta;
  Array<float> lse_global, lse_local, gate;
  Array<int> q_bounds, k_bounds;
  static const std::vector<int>& k_of(const Case& c) { return c.k_bounds.empty() ? c.bounds : c.k_bounds; }

  Problem(const Case& from, uint32_t seed)
      : c(from),
        q_tokens(c.bounds.back()),
        k_tokens(k_of(c).back()),
        q(size_t(q_tokens) * c.query_heads * c.dim),
        k(size_t(k_tokens) * c.kv_heads * c.dim),
        v(k.size),
        out(q.size),
        delta(q.size),
        lse_global(size_t(q_tokens) * c.query_heads),
        lse_local(lse_global.size),
        gate(c.gate),
        q_bounds(c.bounds),
        k_bounds(k_of(c)) {
    fill<<<1024, 256>>>(q.data, int64_t(q.size), seed, c.magnitude);
    fill<<<1024, 256>>>(k.data, int64_t(k.size), seed + 1, c.magnitude);
    fill<<<1024, 256>>>(v.data, int64_t(v.size), seed + 2, 1);
    for (const int d : c.nan_documents) {
      for (Array<Element>* kv : {&k, &v}) {
        const size_t row = size_t(c.kv_heads) * c.dim;
        OK(cudaMemset(kv->data + k_of(c)[d] * row, 0xff, (k_of(c)[d + 1] - k_of(c)[d]) * row * 2));
      }
    }
    for (Array<Element>* o : {&out, &delta}) o->poison();
    for (Array<float>* lse : {&lse_global, &lse_local}) lse->poison();
  }
  Batch batch() const {
    Batch b = {};
    b.documents = int(c.bounds.size()) - 1;
    b.q_tokens = q_tokens;
    b.k_tokens = k_tokens;
    b.query_heads = c.query_heads;
    b.kv_heads = c.kv_heads;
    b.head_dim = c.dim;
    b.locality = c.locality;
    b.q_bounds = q_bounds.data;
    b.k_bounds = k_bounds.data;
    b.gate = gate.data;
    return b;
  }
};

// Runs the kernel and returns its time in milliseconds, the median of `repeats`.
template <class Shape>
float run(Problem& p, int repeats) {
  const Batch batch = p.batch();
  ScheduleOptions options;
  options.query_rows = Shape::kQueryRows;
  options.processors = p.c.processors;
  Array<unsigned char> memory(schedule_bytes(batch, options));
  ForwardParams params = {};
  params.schedule = make_schedule(batch, options, memory.data);
  if (p.c.section > 0) params.schedule.q_section = p.c.section;
  const int64_t dim = p.c.dim;
  params.q = dense(p.q, p.q_tokens, p.c.query_heads, dim);
  params.k = dense(p.k, p.k_tokens, p.c.kv_heads, dim);
  params.v = dense(p.v, p.k_tokens, p.c.kv_heads, dim);
  params.scale = float(1 / std::sqrt(double(dim)));
  params.out = p.out.data;
  params.delta = p.delta.data;
  params.lse_global = p.lse_global.data;
  params.lse_local = p.lse_local.data;
  const size_t partial_rows = size_t(partial_capacity(params.schedule)) * Shape::kQueryRows;
  Array<float> partial_out(partial_rows * dim), partial_lse(partial_rows);
  partial_out.poison();
  partial_lse.poison();
  params.partial_out = partial_out.data;
  params.partial_lse = partial_lse.data;
  CombineParams combine = {};
  combine.type = ElementType::kBFloat16;
  combine.schedule = params.schedule;
  combine.out = params.out;
  combine.lse_global = params.lse_global;
  combine.partial_out = partial_out.data;
  combine.partial_lse = partial_lse.data;
  ForwardArguments arguments;
  if (const char* fault = make_forward_arguments(params, &arguments)) std::printf("%s\n", fault), std::exit(1);
  OK(launch_plan(params.schedule, nullptr));
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int n = 0; n < repeats; ++n) {
    OK(cudaMemsetAsync(&params.schedule.state->next_query, 0, 4));
    OK(cudaEventRecord(begin));
    OK(forward::launch<Shape>(arguments, nullptr));
    if (p.c.processors > 0) OK(launch_combine(combine, nullptr));
    OK(cudaEventRecord(end));
    OK(cudaEventSynchronize(end));
    float time;
    OK(cudaEventElapsedTime(&time, begin, end));
    times.push_back(time);
  }
  OK(cudaEventDestroy(begin));
  OK(cudaEventDestroy(end));
  std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
  return times[repeats / 2];
}

// The mathematics of one (query row, query head): a warp per pair of `pairs`. branch: what to compute.
__global__ void reference(const Element* q, const Element* k, const Element* v, Batch b, double scale, Branch branch,
                          const int2* pairs, int count, double* scores, double* out, double* lse) {
  const int n = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (n >= count) return;
  const int row = pairs[n].x, head = pairs[n].y, kv_head = head / b.group();
  int d = 0;
  while (b.q_bounds[d + 1] <= row) ++d;
  const int k_begin = b.k_bounds[d], k_length = b.k_bounds[d + 1] - k_begin;
  const int position = row - b.q_bounds[d] + k_length - (b.q_bounds[d + 1] - b.q_bounds[d]);
  double* s = scores + int64_t{n} * b.k_tokens;
  double top = -INFINITY;
  for (int j = lane; j <= position; j += 32) {
    double sum = -INFINITY;
    if (visible(branch, b.locality, position, j)) {
      sum = 0;
      for (int e = 0; e < b.head_dim; ++e) {
        sum += double(__bfloat162float(q[(int64_t{row} * b.query_heads + head) * b.head_dim + e])) *
               double(__bfloat162float(k[(int64_t{k_begin + j} * b.kv_heads + kv_head) * b.head_dim + e]));
      }
      sum *= scale;
    }
    s[j] = sum;
    top = fmax(top, sum);
  }
  for (int m = 16; m > 0; m /= 2) top = fmax(top, __shfl_xor_sync(~0u, top, m));
  __syncwarp();
  double total = 0;
  if (top == -INFINITY) top = 0;
  for (int j = 0; j <= position; ++j) total += exp(s[j] - top);
  for (int e = lane; e < b.head_dim; e += 32) {
    double sum = 0;
    for (int j = 0; j <= position; ++j) {
      if (s[j] == -INFINITY) continue;
      sum +=
          exp(s[j] - top) * double(__bfloat162float(v[(int64_t{k_begin + j} * b.kv_heads + kv_head) * b.head_dim + e]));
    }
    out[int64_t{n} * b.head_dim + e] = total > 0 ? sum / total : 0;
  }
  if (lane == 0) lse[n] = total > 0 ? top + log(total) : -INFINITY;
}

// Compares one branch on up to `samples` (row, head) pairs; returns whether it holds.
bool check_branch(const Problem& p, Branch branch, const char* name, int samples) {
  std::vector<int2> pairs;
  const int group = p.c.query_heads / p.c.kv_heads;
  std::vector<int2> all;
  for (int head = 0; head < p.c.query_heads; ++head) {
    const float z = p.c.gate[head / group];
    const bool computed = branch == Branch::kGlobal ? z == 1 : branch == Branch::kLocal ? z < 1 : z > 0 && z < 1;
    if (!computed) continue;
    for (int d = 0; d + 1 < int(p.c.bounds.size()); ++d) {
      if (std::count(p.c.nan_documents.begin(), p.c.nan_documents.end(), d) != 0) continue;
      for (int row = p.c.bounds[d]; row < p.c.bounds[d + 1]; ++row) all.push_back({row, head});
    }
  }
  const size_t stride = std::max<size_t>(1, all.size() / samples) | 1;
  for (size_t i = 0; i < all.size(); i += stride) pairs.push_back(all[i]);
  if (pairs.empty()) return true;
  const int count = int(pairs.size());
  Array<int2> device_pairs(pairs);
  Array<double> scores(size_t(count) * p.k_tokens), out(size_t(count) * p.c.dim), lse(count);
  reference<<<(count + 7) / 8, 256>>>(p.q.data, p.k.data, p.v.data, p.batch(), 1 / std::sqrt(double(p.c.dim)), branch,
                                      device_pairs.data, count, scores.data, out.data, lse.data);
  OK(cudaDeviceSynchronize());
  const auto want = out.host();
  const auto want_lse = lse.host();
  const auto got = (branch == Branch::kComplement ? p.delta : p.out).host();
  const auto got_lse = (branch == Branch::kLocal ? p.lse_local : p.lse_global).host();
  double error2 = 0, norm2 = 0, worst = 0, worst_lse = 0;
  int64_t bad = 0;
  int2 worst_at = {-1, -1};
  for (int n = 0; n < count; ++n) {
    for (int e = 0; e < p.c.dim; ++e) {
      const double w = want[size_t(n) * p.c.dim + e];
      const double g = __bfloat162float(got[(size_t(pairs[n].x) * p.c.query_heads + pairs[n].y) * p.c.dim + e]);
      if (!(std::isfinite(g))) ++bad;
      error2 += (g - w) * (g - w);
      norm2 += w * w;
      if (!(std::fabs(g - w) <= worst)) worst = std::fabs(g - w), worst_at = pairs[n];
    }
    const double w = want_lse[n], g = got_lse[size_t(pairs[n].y) * p.q_tokens + pairs[n].x];
    const double difference = w == g ? 0 : std::fabs(w - g);
    if (!(difference <= worst_lse)) worst_lse = difference;
  }
  const double relative = std::sqrt(error2 / std::max(norm2, 1e-30));
  const bool good = relative <= 4e-3 && worst_lse <= 2e-4 * p.c.magnitude * p.c.magnitude && bad == 0;
  std::printf("  %s %-10s relative error %.2e, largest %.2e at row %d head %d, lse %.2e, not finite %ld, of %d rows\n",
              good ? "ok  " : "FAIL", name, relative, worst, worst_at.x, worst_at.y, worst_lse, long(bad), count);
  return good;
}

bool check(const Problem& p, int samples) {
  bool good = check_branch(p, Branch::kGlobal, "global", samples);
  good = check_branch(p, Branch::kLocal, "local", samples) && good;
  return check_branch(p, Branch::kComplement, "complement", samples) && good;
}

template <class Shape>
bool check_small() {
  std::vector<Case> cases;
  Case c = {Shape::kHeadDim, 8, 4, {128, 256}, {0, 1, 1, 128, 257, 700, 2000, 2063}, {0.0f, 1.0f, 0.5f, 1e-6f}};
  cases.push_back(c);
  c.nan_documents = {3, 5};
  c.locality = {5, 77};
  c.magnitude = 3;
  cases.push_back(c);
  c = {Shape::kHeadDim, 6, 2, {130, 300}, {0, 50, 61, 461}, {0.3f, 1.0f}, 1, {}, {0, 50, 1061, 1761}};
  cases.push_back(c);
  c = {Shape::kHeadDim, 8, 4, {128, 1024}, {0, 50, 200, 900}, {1, 0, 1, 0}, 1, {}, {0, 5000, 9000, 11000}, 64};
  cases.push_back(c);
  bool good = true;
  for (const Case& one : cases) {
    Problem p(one, 11);
    run<Shape>(p, 1);
    OK(cudaDeviceSynchronize());
    std::printf("D %d\n", Shape::kHeadDim);
    good = check(p, 1000000) && good;
  }
  return good;
}

// Visible pairs of all query heads.
double pairs_of(const Case& c) {
  const std::vector<int>& k_bounds = Problem::k_of(c);
  double pairs = 0;
  for (size_t d = 0; d + 1 < c.bounds.size(); ++d) {
    const int q_length = c.bounds[d + 1] - c.bounds[d], k_length = k_bounds[d + 1] - k_bounds[d];
    for (int i = k_length - q_length; i < k_length; ++i) {
      for (const float z : c.gate) {
        const int window = std::min(i + 1, c.locality.window);
        const int sink = std::min(i + 1 - window, c.locality.sink);
        pairs += z == 0 ? window + sink : i + 1;
      }
    }
  }
  return pairs * (c.query_heads / c.kv_heads);
}

// Times cases that differ in one setting in turn, round after round, so that all see the same clocks.
template <class Shape>
void race(const char* what, const std::vector<Case>& cases, const char* setting, int Case::*of, int rounds) {
  const double flop = 4.0 * Shape::kHeadDim * pairs_of(cases[0]);
  const int repeats = std::max(3, int(2e13 / flop));
  std::vector<std::vector<float>> times(cases.size());
  Problem p(cases[0], 5);
  for (int n = 0; n <= rounds; ++n) {
    for (size_t i = 0; i < cases.size(); ++i) {
      p.c = cases[i];
      const float ms = run<Shape>(p, repeats);
      if (n > 0) times[i].push_back(ms);
    }
  }
  std::printf("D %3d %-24s", Shape::kHeadDim, what);
  for (size_t i = 0; i < cases.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    const float ms = times[i][times[i].size() / 2];
    if (of != nullptr) std::printf("  %s %d:", setting, cases[i].*of);
    std::printf(" %.3f ms %.0f TFLOP/s", ms, flop / ms * 1e-9);
  }
  std::printf("\n");
  std::fflush(stdout);
}

template <class Shape>
void time_all() {
  const Locality locality = {128, 1024};
  const std::vector<float> global(8, 1.0f), local(8, 0.0f), mixed = {0, 0, 1, 0, 0, 1, 0, 0};  // 75 % local
  const auto whole = [&](int tokens, const std::vector<float>& gate) {
    return Case{Shape::kHeadDim, 32, 8, locality, {0, tokens}, gate};
  };
  const auto chunk = [&](int tokens, const std::vector<float>& gate, int processors = 0) {
    Case c = whole(tokens, gate);
    c.k_bounds = {0, 131072};
    c.processors = processors;
    return c;
  };
  for (const int tokens : {4096, 16384, 65536}) {
    std::vector<Case> cases;
    for (const int section : {0, 1, 2, 4, 8}) {
      cases.push_back(whole(tokens, global));
      cases.back().section = section;
    }
    const std::string what = "causal " + std::to_string(tokens);
    race<Shape>(what.c_str(), cases, "section", &Case::section, tokens > 16384 ? 3 : 7);
  }
  race<Shape>("local 4096", {whole(4096, local)}, "", nullptr, 7);
  race<Shape>("local 32768", {whole(32768, local)}, "", nullptr, 7);
  const std::vector<int> short_documents = {0, 300, 1000, 1900, 2000, 2700, 3100, 4096, 6000, 6100, 7000, 8192};
  race<Shape>("documents 8192", {{Shape::kHeadDim, 32, 8, locality, short_documents, global}}, "", nullptr, 7);
  if (Shape::kHeadDim != 128) return;
  race<Shape>("8192 of 131072, global", {chunk(8192, global)}, "", nullptr, 3);
  race<Shape>("8192 of 131072, mixed", {chunk(8192, mixed)}, "", nullptr, 3);
  race<Shape>("2048 of 131072, mixed", {chunk(2048, mixed), chunk(2048, mixed, 132)}, "processors", &Case::processors,
              7);
}

int main(int argc, char** argv) {
  using Dim128 = forward::BFloat16Dim128;
  using Dim64 = forward::BFloat16Dim64;
  const auto wanted = [&](const char* what) { return argc < 2 || std::strcmp(argv[1], what) == 0; };
  bool good = true;
  if (wanted("check")) {
    good = check_small<Dim128>();
    good = check_small<Dim64>() && good;
    std::printf(good ? "all correct\n" : "WRONG RESULTS\n");
    std::fflush(stdout);
  }
  if (wanted("time")) {
    time_all<Dim128>();
    time_all<Dim64>();
  }
  if (argc > 1 && wanted("once")) {
    Problem p({128, 32, 8, {128, 1024}, {0, 16384}, std::vector<float>(8, 1.0f)}, 5);
    run<Dim128>(p, 2);
  }
  return good ? 0 : 1;
}
