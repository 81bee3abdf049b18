// SPDX-License-Identifier: MIT
#include <ATen/ops/div.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/maximum.h>
#include <c10/core/DeviceGuard.h>

#include <limits>

#include "csrc/cpu/blocked_jobs.h"
#include "csrc/cpu/row_kernels.h"
#include "csrc/cpu/tile_math.h"
#include "csrc/cpu/tile_scheduler.h"

namespace prulong {
namespace {

// A softmax over keys that arrive in blocks: output sum, row maximum and row sum so far.
class RunningSoftmax {
 public:
  RunningSoftmax(Workspace& workspace, MaskCache& masks, const ForwardJob& job, const QueryTile& tile, double scale)
      : workspace_(workspace), masks_(masks), job_(job), tile_(tile) {
    const int64_t heads = job.q.size(1), group = job.q.size(2), dim = job.q.size(3);
    queries_ = workspace.take(Workspace::kQueries, {heads, tile.rows.size(), group, dim});
    queries_.copy_(job.q.narrow(0, tile.q_begin(), tile.rows.size()).permute({1, 0, 2, 3})).mul_(scale);
    queries_ = queries_.view({heads, tile.rows.size() * group, dim});
    output_ = workspace.take(Workspace::kOutputs, queries_.sizes());
  }

  void add(Branch branch, const KeyBlock& block) {
    const at::Tensor scores =
        workspace_.take(Workspace::kScores, {queries_.size(0), queries_.size(1), count_keys(block)});
    multiply_by_keys(scores, queries_, job_.k, block, tile_.document.k_begin);
    masks_.fill_hidden(scores, branch, block, tile_.positions(), -std::numeric_limits<double>::infinity());
    if (scores.is_cpu() && scores.scalar_type() == at::kFloat) {
      add_in_one_pass(scores);
    } else {
      add_generic(scores);
    }
    multiply_over_keys(output_, scores, job_.v, block, tile_.document.k_begin, started_);
    started_ = true;
  }

  // [H, rows * g, D] into `slot`: the softmax's output over the keys so far.
  at::Tensor output(Workspace::Slot slot) {
    at::Tensor result = workspace_.take(slot, output_.sizes());
    return at::div_out(result, output_, sum_);
  }

  // Writes the logarithm of the row sums over the keys so far.
  void write_lse(const at::Tensor& lse) const {
    const int64_t heads = job_.q.size(1), group = job_.q.size(2);
    lse.narrow(2, tile_.q_begin(), tile_.rows.size())
        .copy_(sum_.log().add_(maximum_).view({heads, tile_.rows.size(), group}).transpose(1, 2));
  }

 private:
  // Both turn scores into exp(scores - maximum) and bring maximum, sum and output to that maximum.
  void add_in_one_pass(const at::Tensor& scores) {
    if (!started_) {
      maximum_ = at::empty({scores.size(0), scores.size(1), 1}, scores.options());
      sum_ = at::empty_like(maximum_);
      shrink_ = at::empty_like(maximum_);
    }
    softmax_rows(scores.mutable_data_ptr<float>(), scores.size(0) * scores.size(1), scores.size(2), !started_,
                 maximum_.mutable_data_ptr<float>(), sum_.mutable_data_ptr<float>(), shrink_.mutable_data_ptr<float>());
    if (started_) output_.mul_(shrink_);
  }

  void add_generic(const at::Tensor& scores) {
    at::Tensor maximum = scores.amax(-1, true);
    if (started_) {
      maximum = at::maximum(maximum, maximum_);
      shrink_ = maximum_.sub_(maximum).exp_();
      scores.sub_(maximum).exp_();
      sum_.mul_(shrink_).add_(scores.sum(-1, true));
      output_.mul_(shrink_);
    } else {
      scores.sub_(maximum).exp_();
      sum_ = scores.sum(-1, true);
    }
    maximum_ = maximum;
  }

  Workspace& workspace_;
  MaskCache& masks_;
  const ForwardJob& job_;
  const QueryTile& tile_;
  at::Tensor queries_, output_, maximum_, sum_, shrink_;
  bool started_ = false;
};

// values [H, rows * g, D] to the tile's rows of target [T, H, g, D].
void write_rows(const at::Tensor& target, const QueryTile& tile, const at::Tensor& values) {
  const int64_t heads = target.size(1), group = target.size(2), dim = target.size(3);
  target.narrow(0, tile.q_begin(), tile.rows.size())
      .copy_(values.view({heads, tile.rows.size(), group, dim}).permute({1, 0, 2, 3}));
}

void forward_tile(const AttentionSpec& spec, const ForwardJob& job, const QueryTile& tile, int max_keys,
                  Workspace& workspace, MaskCache& masks) {
  RunningSoftmax softmax(workspace, masks, job, tile, spec.scale);
  const auto add_branch = [&](Branch branch) {
    for (const KeyBlock& block : plan_key_blocks(branch, spec.locality, tile.positions(), max_keys)) {
      softmax.add(branch, block);
    }
  };
  if (job.kind != HeadKind::kFractional) {
    const bool global = job.kind == HeadKind::kGlobal;
    add_branch(global ? Branch::kGlobal : Branch::kLocal);
    softmax.write_lse(global ? job.lse_global : job.lse_local);
    write_rows(job.out, tile, softmax.output(Workspace::kExtra));
    return;
  }
  // The local softmax on its way to the global one: its maximum is its own, so nothing underflows.
  add_branch(Branch::kLocal);
  softmax.write_lse(job.lse_local);
  const at::Tensor local = softmax.output(Workspace::kExtra);
  add_branch(Branch::kComplement);
  softmax.write_lse(job.lse_global);
  at::Tensor delta = softmax.output(Workspace::kOutputGradients).sub_(local);
  write_rows(job.delta, tile, delta);
  write_rows(job.out, tile, delta.mul_(job.gate).add_(local));
}

}  // namespace

void blocked_forward(const AttentionSpec& spec, const std::vector<ForwardJob>& jobs) {
  if (jobs.empty()) return;
  const at::Device device = jobs.front().q.device();
  const c10::OptionalDeviceGuard guard(device);
  const WorkPlan plan = plan_work(spec, jobs);
  run_workers(plan, [&](size_t worker) {
    Workspace workspace(jobs.front().k.options());
    MaskCache masks(spec.locality, device);
    for (const Segment& segment : plan.shares[worker]) {
      const JobTiles& job = plan.jobs[segment.job];
      for (size_t t = segment.begin; t < segment.end; ++t) {
        forward_tile(spec, jobs[segment.job], job.tiles[t], job.max_keys, workspace, masks);
      }
    }
  });
}

}  // namespace prulong
