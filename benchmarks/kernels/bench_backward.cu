// SPDX-License-Identifier: MIT
//
// The backward kernels alone on a GPU, without torch: checks them against double-precision sums, then times them.
// Arguments: none, "check", "time", "order", or "once": one causal case of 16,384 tokens, for a profiler.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "csrc/hopper/backward/backward_launch.h"
#include "csrc/hopper/schedule_plan.h"
#include "tests/csrc/hopper/gpu_backward_reference.h"

using namespace prulong::kernels;  // NOLINT

// About what random scores give.
__global__ void fill_lse(float* lse, int tokens, int heads) {
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < tokens * heads; i += gridDim.x * blockDim.x) {
    lse[i] = logf(float(i % tokens + 1)) + 0.5f;
  }
}

struct Case {
  int dim, query_heads, kv_heads;
  Locality locality;
  std::vector<int> bounds;
  std::vector<float> gate;
  float magnitude = 1;
  std::vector<int> nan_documents = {};
};

// A case in GPU memory.
struct Problem {
  Case c;
  int tokens;
  Array<Element> q, k, v, dout, out, delta, dq, dk, dv;
  Array<float> lse_global, lse_local, gate, dgate;
  Array<int> bounds;
  Array<unsigned char> plan, scratch;
  BackwardParams params = {};

  Problem(const Case& from, uint32_t seed)
      : c(from),
        tokens(c.bounds.back()),
        q(size_t(tokens) * c.query_heads * c.dim),
        k(size_t(tokens) * c.kv_heads * c.dim),
        v(k.size),
        dout(q.size),
        out(q.size),
        delta(q.size),
        dq(q.size),
        dk(k.size),
        dv(k.size),
        lse_global(size_t(tokens) * c.query_heads),
        lse_local(lse_global.size),
        gate(c.gate),
        dgate(c.gate.size()),
        bounds(c.bounds),
        plan(schedule_bytes(batch(), options())),
        scratch(backward_scratch_bytes(batch())) {
    fill<<<1024, 256>>>(q.data, int64_t(q.size), seed, c.magnitude);
    fill<<<1024, 256>>>(k.data, int64_t(k.size), seed + 1, c.magnitude);
    fill<<<1024, 256>>>(v.data, int64_t(v.size), seed + 2, 1);
    fill<<<1024, 256>>>(dout.data, int64_t(dout.size), seed + 3, 1);
    fill<<<1024, 256>>>(out.data, int64_t(out.size), seed + 4, 0.02f);
    fill<<<1024, 256>>>(delta.data, int64_t(delta.size), seed + 5, 0.02f);
    fill_lse<<<1024, 256>>>(lse_global.data, tokens, c.query_heads);
    fill_lse<<<1024, 256>>>(lse_local.data, tokens, c.query_heads);
    params.schedule = make_schedule(batch(), options(), plan.data);
    params.q = dense(q, tokens, c.query_heads, c.dim);
    params.k = dense(k, tokens, c.kv_heads, c.dim);
    params.v = dense(v, tokens, c.kv_heads, c.dim);
    params.dout = dense(dout, tokens, c.query_heads, c.dim);
    params.scale = float(1 / std::sqrt(double(c.dim)));
    params.out = out.data;
    params.delta = delta.data;
    params.lse_global = lse_global.data;
    params.lse_local = lse_local.data;
    params.scratch = scratch.data;
    params.dq = dq.data;
    params.dk = dk.data;
    params.dv = dv.data;
    params.dgate = dgate.data;
    OK(cudaDeviceSynchronize());
  }
  static ScheduleOptions options() {
    ScheduleOptions options;
    options.with_keys = true;
    return options;
  }
  Batch batch() const {
    Batch b = {};
    b.documents = int(c.bounds.size()) - 1;
    b.q_tokens = b.k_tokens = tokens;
    b.query_heads = c.query_heads;
    b.kv_heads = c.kv_heads;
    b.head_dim = c.dim;
    b.locality = c.locality;
    b.q_bounds = b.k_bounds = bounds.data;
    b.gate = gate.data;
    return b;
  }
  void poison_inputs() {
    for (const int d : c.nan_documents) {
      for (Array<Element>* x : {&q, &k, &v, &dout, &out, &delta}) {
        const size_t row = x->size / tokens;
        OK(cudaMemset(x->data + c.bounds[d] * row, 0xff, (c.bounds[d + 1] - c.bounds[d]) * row * sizeof(Element)));
      }
    }
  }
  void poison_outputs() {
    for (Array<Element>* x : {&dq, &dk, &dv}) x->poison();
    dgate.poison();
    scratch.poison();
  }
};

bool compare(const Problem& p, const Array<Element>& got_array, const Array<double>& want_array, const char* name) {
  const auto got = got_array.host();
  const auto want = want_array.host();
  const size_t row = got.size() / p.tokens;
  double worst = 0;
  int where = -1;
  for (int d = 0; d + 1 < int(p.c.bounds.size()); ++d) {
    if (std::count(p.c.nan_documents.begin(), p.c.nan_documents.end(), d) != 0) continue;
    for (size_t head = 0; head < row / p.c.dim; ++head) {
      double error = 0, norm = 1e-3;
      for (int t = p.c.bounds[d]; t < p.c.bounds[d + 1]; ++t) {
        for (int e = 0; e < p.c.dim; ++e) {
          const size_t at = t * row + head * p.c.dim + e;
          const double difference = double(__bfloat162float(got[at])) - want[at];
          error += difference * difference;
          norm += want[at] * want[at];
        }
      }
      const double relative = std::sqrt(error / norm);
      if (!(relative <= worst)) worst = relative, where = d;
    }
  }
  const bool good = worst < 1e-2;
  std::printf("  %s relative error %.2e%s", name, worst, good ? "" : " BAD");
  if (!good) std::printf(" (document %d)", where);
  return good;
}

bool check(const Case& c, uint32_t seed) {
  Problem p(c, seed);
  Array<ReferenceRow> rows(p.lse_global.size);
  Array<double> dq(p.q.size), dk(p.k.size), dv(p.k.size), dgate(c.gate.size()), dgate_noise(dgate.size);
  OK(cudaMemset(dgate.data, 0, dgate.size * 8));
  OK(cudaMemset(dgate_noise.data, 0, dgate.size * 8));
  const Reference r = {p.batch(),         1 / std::sqrt(double(c.dim)),
                       p.q.data,          p.k.data,
                       p.v.data,          p.dout.data,
                       rows.data,         dq.data,
                       dk.data,           dv.data,
                       dgate.data,        dgate_noise.data,
                       p.out.data,        p.delta.data,
                       p.lse_global.data, p.lse_local.data};
  reference_rows<<<p.tokens * c.query_heads / 4 + 1, 128>>>(r);
  reference_keys<<<p.tokens * c.kv_heads / 4 + 1, 128>>>(r);
  OK(cudaDeviceSynchronize());
  p.poison_inputs();
  bool good = true, same = true;
  std::vector<Element> first_dk, first_dv;
  for (int n = 0; n < 3; ++n) {
    p.poison_outputs();
    OK(launch_plan(p.params.schedule, nullptr));
    OK(launch_backward(p.params, nullptr));
    OK(cudaDeviceSynchronize());
    const auto now_dk = p.dk.host(), now_dv = p.dv.host();
    if (n == 0) first_dk = now_dk, first_dv = now_dv;
    same = same && std::memcmp(first_dk.data(), now_dk.data(), now_dk.size() * 2) == 0 &&
           std::memcmp(first_dv.data(), now_dv.data(), now_dv.size() * 2) == 0;
  }
  std::printf("D %d, %d/%d heads, %d documents, %d tokens, sink %d, window %d:", c.dim, c.query_heads, c.kv_heads,
              int(c.bounds.size()) - 1, p.tokens, c.locality.sink, c.locality.window);
  good = compare(p, p.dq, dq, "dq") && good;
  good = compare(p, p.dk, dk, "dk") && good;
  good = compare(p, p.dv, dv, "dv") && good;
  double worst = 0;
  const auto got = p.dgate.host();
  const auto want = dgate.host(), noise = dgate_noise.host();
  for (size_t h = 0; h < got.size() && c.nan_documents.empty(); ++h) {
    const double error = std::fabs(got[h] - want[h]) / (std::sqrt(noise[h]) + 1e-30);
    if (!(error <= worst)) worst = error;
  }
  // delta is rounded to bfloat16: an error of at most 2^-9 in each term, of random sign.
  good = good && worst < 4 * 0x1p-9 && same;
  std::printf("  dgate %.2e of its terms' norm%s%s\n", worst, same ? "" : "  dk, dv NOT DETERMINISTIC",
              good ? "" : "  FAILED");
  return good;
}

// Does dq have the same bits on every run, if asked for? Prints the price, too.
bool check_order(int dim, float gate) {
  Problem p({dim, 16, 4, {128, 1000}, {0, 9001, 12288}, std::vector<float>(4, gate)}, 9);
  float times[2] = {};
  std::vector<Element> first;
  bool same = true;
  cudaEvent_t begin, end;
  OK(cudaEventCreate(&begin));
  OK(cudaEventCreate(&end));
  for (int n = 0; n < 12; ++n) {
    p.params.deterministic = n % 2 == 1;
    p.poison_outputs();
    OK(launch_plan(p.params.schedule, nullptr));
    OK(cudaEventRecord(begin));
    OK(launch_backward(p.params, nullptr));
    OK(cudaEventRecord(end));
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&times[n % 2], begin, end));
    if (n % 2 == 0) continue;
    const auto now = p.dq.host();
    if (first.empty()) first = now;
    same = same && std::memcmp(first.data(), now.data(), now.size() * 2) == 0;
  }
  OK(cudaEventDestroy(begin));
  OK(cudaEventDestroy(end));
  std::printf("D %d, gates %g, additions in order: %.3f ms instead of %.3f  %s\n", dim, double(gate), times[1],
              times[0], same ? "same bits" : "NOT DETERMINISTIC");
  std::fflush(stdout);
  return same;
}

// --- Time.

float median(std::vector<float> times) {
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

/// Prints a line; returns milliseconds of the whole backward pass.
template <class Shape>
float time(const char* name, int tokens, float gate, int repeats, int query_heads = 32, int kv_heads = 8) {
  Problem p({Shape::kHeadDim, query_heads, kv_heads, {128, 1024}, {0, tokens}, std::vector<float>(kv_heads, gate)}, 1);
  OK(launch_plan(p.params.schedule, nullptr));
  BackwardArguments arguments;
  if (const char* fault = make_backward_arguments(p.params, &arguments)) std::printf("%s\n", fault), std::exit(1);
  const BackwardRows rows = make_backward_rows(p.params);
  int processors = 0;
  OK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  OK(cudaFuncSetAttribute(backward::kernel<Shape>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kSharedBytes));
  cudaEvent_t events[4];
  for (cudaEvent_t& e : events) OK(cudaEventCreate(&e));
  std::vector<float> times[4];
  for (int n = 0; n < repeats + 3; ++n) {
    OK(cudaMemsetAsync(&p.params.schedule.state->next_key, 0, 4));
    OK(cudaEventRecord(events[0]));
    backward::prepare<Shape>
        <<<unsigned(prepare_blocks(rows.batch)), kBackwardRowThreads, backward::kPrepareSharedBytes>>>(rows);
    OK(cudaEventRecord(events[1]));
    backward::kernel<Shape><<<processors, Shape::kThreads, Shape::kSharedBytes>>>(arguments);
    OK(cudaEventRecord(events[2]));
    backward::finish<Shape>
        <<<unsigned(finish_blocks(rows.batch)), kBackwardRowThreads, (backward::kFinishSharedBytes<Shape::kHeadDim>)>>>(
            rows);
    OK(cudaEventRecord(events[3]));
    OK(cudaGetLastError());
    OK(cudaEventSynchronize(events[3]));
    if (n < 3) continue;
    for (int i = 0; i < 4; ++i) {
      float t;
      OK(cudaEventElapsedTime(&t, events[i == 3 ? 0 : i], events[i == 3 ? 3 : i + 1]));
      times[i].push_back(t);
    }
  }
  for (cudaEvent_t& e : events) OK(cudaEventDestroy(e));
  const double flops = 10.0 * Shape::kHeadDim * query_heads * (double(tokens) * (tokens + 1) / 2);
  const float whole = median(times[3]), main = median(times[1]);
  std::printf("%-28s D %3d %6d tokens: %8.3f ms = prepare %.3f + main %.3f + finish %.3f", name, Shape::kHeadDim,
              tokens, whole, median(times[0]), main, median(times[2]));
  if (gate == 1) std::printf("   %.0f TFLOP/s (main alone %.0f)", flops / whole * 1e-9, flops / main * 1e-9);
  std::printf("\n");
  std::fflush(stdout);
  return whole;
}

int main(int argc, char** argv) {
  const auto wanted = [&](const char* what) { return argc < 2 || std::strcmp(argv[1], what) == 0; };
  bool good = true;
  if (wanted("check")) {
    for (const int dim : {128, 64}) {
      good = check({dim, 1, 1, {128, 256}, {0, 64}, {1.0f}}, 1) && good;
      good = check({dim, 1, 1, {128, 256}, {0, 128}, {1.0f}}, 2) && good;
      good = check({dim, 2, 2, {128, 256}, {0, 1024}, {1.0f, 0.0f}}, 3) && good;
      good = check({dim, 8, 2, {128, 256}, {0, 1000}, {1.0f, 0.3f}}, 4) && good;
      good = check({dim, 4, 4, {5, 77}, {0, 0, 1, 128, 256, 385, 700, 1229}, {0.0f, 1.0f, 1e-6f, 0.7f}}, 5) && good;
      good = check({dim, 6, 2, {128, 128}, {0, 515, 515, 1030}, {0.5f, 0.999f}, 2}, 6) && good;
      good = check({dim, 2, 2, {3, 60}, {0, 100, 160, 291, 331}, {0.5f, 1.0f}, 1, {1, 3}}, 7) && good;
      std::fflush(stdout);
    }
    std::printf(good ? "all correct\n" : "WRONG RESULTS\n");
  }
  if (wanted("time")) {
    using Dim128 = backward::BFloat16Dim128;
    using Dim64 = backward::BFloat16Dim64;
    time<Dim128>("causal", 4096, 1, 30);
    time<Dim128>("causal", 16384, 1, 15);
    const float plain = time<Dim128>("causal", 32768, 1, 7);
    time<Dim128>("causal", 65536, 1, 5);
    time<Dim64>("causal", 4096, 1, 30);
    time<Dim64>("causal", 16384, 1, 15);
    std::printf("fractional / causal: %.3f\n", time<Dim128>("fractional", 32768, 0.5f, 7) / plain);
    std::printf("local / causal: %.3f\n", time<Dim128>("local", 32768, 0, 15) / plain);
  }
  if (wanted("order")) {
    for (const int dim : {128, 64}) {
      for (const float gate : {1.0f, 0.5f, 0.0f}) good = check_order(dim, gate) && good;
    }
  }
  if (argc > 1 && wanted("once")) time<backward::BFloat16Dim128>("causal", 16384, 1, 1);
  return good ? 0 : 1;
}
