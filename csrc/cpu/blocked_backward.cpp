// SPDX-License-Identifier: MIT
#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/rsub.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>

#include "csrc/cpu/blocked_jobs.h"
#include "csrc/cpu/row_kernels.h"
#include "csrc/cpu/tile_math.h"
#include "csrc/cpu/tile_scheduler.h"

namespace prulong {
namespace {

class BackwardTile {
 public:
  BackwardTile(Workspace& workspace, MaskCache& masks, const BackwardJob& job, const QueryTile& tile)
      : workspace_(workspace),
        masks_(masks),
        job_(job),
        tile_(tile),
        heads_(job.q.size(1)),
        group_(job.q.size(2)),
        dim_(job.q.size(3)) {}

  void run(const AttentionSpec& spec, int max_keys) {
    dout_ = read_rows(job_.dout, Workspace::kOutputGradients);
    // row = <dout, out>: what every softmax gradient subtracts.
    const at::Tensor row = read_rows(job_.out, Workspace::kExtra).mul_(dout_).sum(-1, true);
    at::Tensor row_delta;
    if (job_.kind == HeadKind::kFractional) {
      row_delta = read_rows(job_.delta, Workspace::kExtra).mul_(dout_).sum(-1, true);
      if (job_.dgate.defined()) job_.dgate.add_(row_delta.sum({1, 2}, false, job_.dgate.scalar_type()));
    }
    if (!job_.dq.defined() && !job_.dk.defined() && !job_.dv.defined()) return;

    queries_ = read_rows(job_.q, Workspace::kQueries).mul_(spec.scale);
    if (job_.dq.defined()) dq_ = workspace_.take(Workspace::kOutputs, queries_.sizes()).zero_();
    const auto add_branch = [&](Branch branch, const at::Tensor& lam, const at::Tensor& mean) {
      for (const KeyBlock& block : plan_key_blocks(branch, spec.locality, tile_.positions(), max_keys)) {
        add(branch, block, lam, mean);
      }
    };
    if (job_.kind == HeadKind::kGlobal) {
      add_branch(Branch::kGlobal, read_lse(job_.lse_global), row);
    } else if (job_.kind == HeadKind::kLocal) {
      add_branch(Branch::kLocal, read_lse(job_.lse_local), row);
    } else {
      // On local keys z P_global + (1 - z) P_local = exp(s - lam_l); its gradient subtracts the mean of the two
      // branches' row terms, weighted by their shares of that sum. Elsewhere only z P_global = exp(s - lam_c) remains.
      const at::Tensor mean_local = row - job_.gate * row_delta;
      const at::Tensor mean_global = row + at::rsub(job_.gate, 1) * row_delta;
      const at::Tensor lam_c = read_lse(job_.lse_global).sub_(job_.gate.log());
      const at::Tensor lam_only_l = read_lse(job_.lse_local).sub_(job_.gate.neg().log1p());
      const at::Tensor lam_l = at::logaddexp(-lam_c, -lam_only_l).neg_();
      const at::Tensor weight = at::exp(lam_l - lam_c);
      add_branch(Branch::kLocal, lam_l, mean_local + weight * (mean_global - mean_local));
      add_branch(Branch::kComplement, lam_c, mean_global);
    }
    if (job_.dq.defined()) {
      job_.dq.narrow(0, tile_.q_begin(), tile_.rows.size())
          .copy_(dq_.mul_(spec.scale).view({heads_, tile_.rows.size(), group_, dim_}).permute({1, 0, 2, 3}));
    }
  }

 private:
  // P = exp(s - lam), dS = P (dP - mean); lam and mean are [H, rows * g, 1], contiguous.
  void add(Branch branch, const KeyBlock& block, const at::Tensor& lam, const at::Tensor& mean) {
    const int64_t keys = count_keys(block);
    const at::Tensor p = workspace_.take(Workspace::kScores, {heads_, queries_.size(1), keys});
    multiply_by_keys(p, queries_, job_.k, block, tile_.document.k_begin);
    const bool one_pass = p.is_cpu() && p.scalar_type() == at::kFloat;
    if (one_pass) {
      exp_rows(p.mutable_data_ptr<float>(), p.size(0) * p.size(1), keys, lam.const_data_ptr<float>());
    } else {
      p.sub_(lam).exp_();
    }
    masks_.fill_hidden(p, branch, block, tile_.positions(), 0.0);
    if (job_.dv.defined()) add_to_keys(job_.dv, p, dout_, block, tile_.document.k_begin);
    if (!dq_.defined() && !job_.dk.defined()) return;
    const at::Tensor dp = workspace_.take(Workspace::kScoreGradients, p.sizes());
    multiply_by_keys(dp, dout_, job_.v, block, tile_.document.k_begin);
    if (one_pass) {
      score_gradient_rows(p.mutable_data_ptr<float>(), dp.const_data_ptr<float>(), p.size(0) * p.size(1), keys,
                          mean.const_data_ptr<float>());
    } else {
      p.mul_(dp.sub_(mean));
    }
    if (dq_.defined()) multiply_over_keys(dq_, p, job_.k, block, tile_.document.k_begin, true);
    if (job_.dk.defined()) add_to_keys(job_.dk, p, queries_, block, tile_.document.k_begin);
  }

  // The tile's rows of [T, H, g, D] as [H, rows * g, D] in the compute type.
  at::Tensor read_rows(const at::Tensor& source, Workspace::Slot slot) {
    at::Tensor rows = workspace_.take(slot, {heads_, tile_.rows.size(), group_, dim_});
    rows.copy_(source.narrow(0, tile_.q_begin(), tile_.rows.size()).permute({1, 0, 2, 3}));
    return rows.view({heads_, tile_.rows.size() * group_, dim_});
  }

  // The tile's rows of [H, g, T] as [H, rows * g, 1], a copy.
  at::Tensor read_lse(const at::Tensor& lse) const {
    return lse.narrow(2, tile_.q_begin(), tile_.rows.size())
        .transpose(1, 2)
        .clone(at::MemoryFormat::Contiguous)
        .view({heads_, tile_.rows.size() * group_, 1});
  }

  Workspace& workspace_;
  MaskCache& masks_;
  const BackwardJob& job_;
  const QueryTile& tile_;
  int64_t heads_, group_, dim_;
  at::Tensor dout_, queries_, dq_;
};

}  // namespace

void blocked_backward(const AttentionSpec& spec, const std::vector<BackwardJob>& jobs) {
  if (jobs.empty()) return;
  const at::Device device = jobs.front().q.device();
  const c10::OptionalDeviceGuard guard(device);
  const WorkPlan plan = plan_work(spec, jobs);
  const auto& shares = plan.shares;

  std::vector<std::vector<BackwardJob>> parts(shares.size());
  for (size_t w = 0; w < shares.size(); ++w) {
    for (const Segment& segment : shares[w]) {
      BackwardJob part = jobs[segment.job];
      // Another worker has the job's first tiles: add to private sums, joined below in a fixed order.
      if (segment.begin > 0) {
        if (part.dk.defined()) part.dk = at::zeros_like(part.dk, at::MemoryFormat::Contiguous);
        if (part.dv.defined()) part.dv = at::zeros_like(part.dv, at::MemoryFormat::Contiguous);
        if (part.dgate.defined()) part.dgate = at::zeros_like(part.dgate);
      }
      parts[w].push_back(part);
    }
  }
  run_workers(plan, [&](size_t w) {
    Workspace workspace(jobs.front().k.options());
    MaskCache masks(spec.locality, device);
    for (size_t s = 0; s < shares[w].size(); ++s) {
      const Segment& segment = shares[w][s];
      const BackwardJob& part = parts[w][s];
      const JobTiles& job = plan.jobs[segment.job];
      for (size_t t = segment.begin; t < segment.end; ++t) {
        BackwardTile(workspace, masks, part, job.tiles[t]).run(spec, job.max_keys);
      }
    }
  });
  for (size_t w = 0; w < shares.size(); ++w) {
    for (size_t s = 0; s < shares[w].size(); ++s) {
      if (shares[w][s].begin == 0) continue;
      const BackwardJob& job = jobs[shares[w][s].job];
      if (job.dk.defined()) job.dk.add_(parts[w][s].dk);
      if (job.dv.defined()) job.dv.add_(parts[w][s].dv);
      if (job.dgate.defined()) job.dgate.add_(parts[w][s].dgate);
    }
  }
}

}  // namespace prulong
