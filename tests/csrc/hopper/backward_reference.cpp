// SPDX-License-Identifier: MIT
#include "tests/csrc/hopper/backward_reference.h"

#include <algorithm>
#include <cmath>

#include "csrc/hopper/device/arithmetic.h"

namespace prulong::kernels::tests {

Tensor::Tensor(ElementType element, int rows, int columns, int depth, int hidden)
    : type(element),
      tokens(rows),
      heads(columns),
      dim(depth),
      hidden_heads(hidden),
      bits(static_cast<size_t>(rows) * static_cast<size_t>((columns + hidden) * depth), kNanBits) {}

void Tensor::randomize(float magnitude, std::mt19937_64& random) {
  std::normal_distribution<float> normal(0, magnitude);
  for (int t = 0; t < tokens; ++t) {
    for (int h = 0; h < heads; ++h) {
      for (int d = 0; d < dim; ++d) set(t, h, d, static_cast<double>(normal(random)));
    }
  }
}

void Tensor::poison(int begin, int end) {
  std::fill(bits.begin() + static_cast<ptrdiff_t>(at(begin, 0, 0)),
            bits.begin() + static_cast<ptrdiff_t>(at(end, 0, 0)), kNanBits);
}

size_t Tensor::at(int token, int head, int d) const {
  return (static_cast<size_t>(token) * static_cast<size_t>(heads + hidden_heads) + static_cast<size_t>(head)) *
             static_cast<size_t>(dim) +
         static_cast<size_t>(d);
}

void Tensor::set(int token, int head, int d, double value) {
  bits[at(token, head, d)] = device::emulation::round_element(type, static_cast<float>(value));
}

double Tensor::value(int token, int head, int d) const {
  return static_cast<double>(device::emulation::widen_element(type, bits[at(token, head, d)]));
}

namespace {

using Vector = std::vector<double>;

double dot(const double* a, const double* b, size_t n) {
  double sum = 0;
  for (size_t e = 0; e < n; ++e) sum += a[e] * b[e];
  return sum;
}
void add(double* to, double factor, const double* from, size_t n) {
  for (size_t e = 0; e < n; ++e) to[e] += factor * from[e];
}

// One branch of one query row.
struct Softmax {
  double lse, mean;  // mean of dP
  Vector p;
};
Softmax softmax(const Vector& s, const Vector& dp, Branch branch, Locality locality) {
  const int i = static_cast<int>(s.size()) - 1;
  Softmax result = {0, 0, Vector(s.size(), 0.0)};
  const double top = *std::max_element(s.begin(), s.end());
  double total = 0;
  for (int j = 0; j <= i; ++j) {
    if (visible(branch, locality, i, j)) total += std::exp(s[static_cast<size_t>(j)] - top);
  }
  result.lse = top + std::log(total);
  for (int j = 0; j <= i; ++j) {
    const size_t n = static_cast<size_t>(j);
    if (visible(branch, locality, i, j)) result.p[n] = std::exp(s[n] - result.lse);
    result.mean += result.p[n] * dp[n];
  }
  return result;
}

// One document and query head.
class HeadGradients {
 public:
  HeadGradients(const Batch& batch, int document, int head, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& dout, Expected& to)
      : batch_(batch),
        type_(q.type),
        begin_(batch.q_bounds[document]),
        rows_(static_cast<size_t>(batch.q_bounds[document + 1] - begin_)),
        dim_(static_cast<size_t>(batch.head_dim)),
        head_(head),
        kv_head_(head / batch.group()),
        z_(static_cast<double>(batch.gate[kv_head_])),
        scale_(1 / std::sqrt(static_cast<double>(batch.head_dim))),
        q_(matrix(q, head)),
        k_(matrix(k, kv_head_)),
        v_(matrix(v, kv_head_)),
        dout_(matrix(dout, head)),
        to_(to) {}

  void compute() {
    for (size_t i = 0; i < rows_; ++i) add_exact_row(i);
    if (z_ > 0) add_plain(Branch::kGlobal, z_);
    if (z_ < 1) add_plain(Branch::kLocal, 1 - z_);
  }

 private:
  Vector matrix(const Tensor& t, int head) const {
    Vector values;
    for (int row = begin_; row < begin_ + static_cast<int>(rows_); ++row) {
      for (int d = 0; d < batch_.head_dim; ++d) values.push_back(t.value(row, head, d));
    }
    return values;
  }
  double round(double x) const {
    return static_cast<double>(
        device::emulation::widen_element(type_, device::emulation::round_element(type_, static_cast<float>(x))));
  }
  // Where a row of the document lies in results.
  size_t at(size_t row, int heads, int head) const {
    return ((static_cast<size_t>(begin_) + row) * static_cast<size_t>(heads) + static_cast<size_t>(head)) * dim_;
  }
  size_t query_at(size_t row) const { return at(row, batch_.query_heads, head_); }
  size_t key_at(size_t row) const { return at(row, batch_.kv_heads, kv_head_); }

  void add_exact_row(size_t i) {
    Vector s(i + 1), dp(i + 1);
    const double *q = &q_[i * dim_], *dout = &dout_[i * dim_];
    for (size_t j = 0; j <= i; ++j) {
      s[j] = scale_ * dot(q, &k_[j * dim_], dim_);
      dp[j] = dot(dout, &v_[j * dim_], dim_);
    }
    const Softmax global = softmax(s, dp, Branch::kGlobal, batch_.locality);
    const Softmax local = softmax(s, dp, Branch::kLocal, batch_.locality);
    const size_t statistic = static_cast<size_t>(head_ * batch_.q_tokens + begin_) + i;
    to_.lse_global[statistic] = static_cast<float>(global.lse);
    to_.lse_local[statistic] = static_cast<float>(local.lse);
    for (size_t j = 0; j <= i; ++j) {
      const double p = z_ * global.p[j] + (1 - z_) * local.p[j];
      const double ds = z_ * global.p[j] * (dp[j] - global.mean) + (1 - z_) * local.p[j] * (dp[j] - local.mean);
      add(&to_.out[query_at(i)], p, &v_[j * dim_], dim_);
      add(&to_.delta[query_at(i)], global.p[j] - local.p[j], &v_[j * dim_], dim_);
      add(&to_.exact.dq[query_at(i)], scale_ * ds, &k_[j * dim_], dim_);
      add(&to_.exact.dk[key_at(j)], scale_ * ds, q, dim_);
      add(&to_.exact.dv[key_at(j)], p, dout, dim_);
    }
    if (z_ <= 0 || z_ >= 1) return;
    to_.dgate[static_cast<size_t>(kv_head_)] += global.mean - local.mean;
    double& noise = to_.dgate_noise[static_cast<size_t>(kv_head_)];
    for (size_t e = 0; e < dim_; ++e) noise = std::hypot(noise, dout[e] * to_.delta[query_at(i) + e]);
  }

  // A branch's own attention and the gradients of what it gives to the sum. Gradients of branches and heads add up.
  void add_plain(Branch branch, double weight) {
    Vector dk(rows_ * dim_, 0.0), dv(dk), dq(dim_), dout(dim_);
    for (size_t i = 0; i < rows_; ++i) {
      Vector s(i + 1), dp(i + 1);
      for (size_t e = 0; e < dim_; ++e) dout[e] = round(weight * dout_[i * dim_ + e]);
      for (size_t j = 0; j <= i; ++j) {
        s[j] = round(scale_ * round(dot(&q_[i * dim_], &k_[j * dim_], dim_)));
        dp[j] = round(dot(dout.data(), &v_[j * dim_], dim_));
      }
      Vector p = softmax(s, dp, branch, batch_.locality).p;
      for (double& x : p) x = round(x);
      const double mean = dot(p.data(), dp.data(), i + 1);
      std::fill(dq.begin(), dq.end(), 0.0);
      for (size_t j = 0; j <= i; ++j) {
        const double ds = round(scale_ * round(p[j] * (dp[j] - mean)));
        add(dq.data(), ds, &k_[j * dim_], dim_);
        add(&dk[j * dim_], ds, &q_[i * dim_], dim_);
        add(&dv[j * dim_], p[j], dout.data(), dim_);
      }
      add_rounded(&to_.plain.dq[query_at(i)], dq.data());
    }
    for (size_t j = 0; j < rows_; ++j) {
      add_rounded(&to_.plain.dk[key_at(j)], &dk[j * dim_]);
      add_rounded(&to_.plain.dv[key_at(j)], &dv[j * dim_]);
    }
  }
  void add_rounded(double* to, const double* from) const {
    for (size_t e = 0; e < dim_; ++e) to[e] = round(to[e] + round(from[e]));
  }

  const Batch& batch_;
  const ElementType type_;
  const int begin_;
  const size_t rows_, dim_;
  const int head_, kv_head_;
  const double z_, scale_;
  const Vector q_, k_, v_, dout_;
  Expected& to_;
};

}  // namespace

Expected expected_gradients(const Batch& batch, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& dout,
                            const std::vector<int>& skipped) {
  const size_t tokens = static_cast<size_t>(batch.q_tokens), heads = static_cast<size_t>(batch.query_heads);
  const size_t dim = static_cast<size_t>(batch.head_dim), kv_heads = static_cast<size_t>(batch.kv_heads);
  Expected to;
  to.out.assign(tokens * heads * dim, 0);
  to.delta = to.out;
  to.lse_global.assign(tokens * heads, 0);
  to.lse_local = to.lse_global;
  to.exact = {to.out, std::vector<double>(tokens * kv_heads * dim), std::vector<double>(tokens * kv_heads * dim)};
  to.plain = to.exact;
  to.dgate.assign(kv_heads, 0);
  to.dgate_noise = to.dgate;
  for (int d = 0; d < batch.documents; ++d) {
    if (std::count(skipped.begin(), skipped.end(), d) != 0) continue;
    for (int head = 0; head < batch.query_heads; ++head) {
      HeadGradients(batch, d, head, q, k, v, dout, to).compute();
    }
  }
  return to;
}

}  // namespace prulong::kernels::tests
