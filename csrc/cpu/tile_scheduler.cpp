// SPDX-License-Identifier: MIT
#include "csrc/cpu/tile_scheduler.h"

#include <ATen/Parallel.h>
#include <ATen/core/LegacyTypeDispatch.h>

#include <algorithm>

#include "csrc/cpu/tile_plan.h"

namespace prulong {
namespace {

struct TileShape {
  int rows, keys;
};

TileShape choose_tile_shape(const JobSize& job, bool cuda, bool backward) {
  const int64_t heads = job.heads, group = job.group;
  const auto shape = [](int64_t rows, int64_t keys) {
    return TileShape{static_cast<int>(rows), static_cast<int>(std::max(rows, keys))};
  };
  if (cuda) {
    // Few launches: scores of all heads of a job together, up to 64 Mi elements.
    constexpr int64_t kScores = int64_t{1} << 26;
    const int64_t rows = std::clamp<int64_t>(kScores / (heads * group * 4096), 16, 512);
    return shape(rows, kScores / (heads * group * rows));
  }
  // Per core: 96 Ki scores (384 KiB) fit in second-level caches of 512 KiB and more; backward holds two such buffers.
  constexpr int64_t kQueryRows = 192;
  constexpr int64_t kLocalTokens = 64;  // a taller local tile computes more scores that it then hides
  const int64_t scores = (backward ? 72 : 96) * 1024;
  const int64_t rows = std::clamp<int64_t>((kQueryRows / group + 7) / 8 * 8, 16,
                                           job.kind == HeadKind::kLocal ? kLocalTokens : kQueryRows);
  return shape(rows, scores / (rows * group) / 16 * 16);
}

std::vector<QueryTile> make_tiles(const AttentionSpec& spec, int rows) {
  std::vector<QueryTile> tiles;
  for (const DocumentRows& document : spec.documents) {
    for (Range tile = {0, 0}; tile.end < document.q_length;) {
      tile = {tile.end, tile.end + std::min(rows, document.q_length - tile.end)};
      tiles.push_back({document, tile});
    }
  }
  return tiles;
}

std::vector<std::vector<Segment>> share_out(const AttentionSpec& spec, const std::vector<JobSize>& sizes,
                                            const std::vector<JobTiles>& jobs, int workers) {
  // Rows x keys, plus what a tile costs however small it is (in the same unit: its operators' fixed cost).
  constexpr int64_t kTileCost = 4096;
  const auto cost_of = [&spec](HeadKind kind, const QueryTile& tile) {
    const Range positions = tile.positions();
    int64_t keys = positions.end;
    if (kind == HeadKind::kLocal) {
      keys = count_keys(plan_key_blocks(Branch::kLocal, spec.locality, positions, positions.end));
    }
    return kTileCost + positions.size() * keys;
  };
  std::vector<std::vector<int64_t>> costs(jobs.size());
  int64_t total = 0;
  for (size_t job = 0; job < jobs.size(); ++job) {
    for (const QueryTile& tile : jobs[job].tiles) {
      costs[job].push_back(cost_of(sizes[job].kind, tile));
      total += costs[job].back();
    }
  }
  std::vector<std::vector<Segment>> shares(static_cast<size_t>(workers));
  int64_t done = 0;
  for (size_t job = 0; job < jobs.size(); ++job) {
    for (size_t t = 0; t < costs[job].size(); ++t) {
      // The worker in whose share the middle of this tile's cost falls.
      const int64_t middle = done + costs[job][t] / 2;
      const auto worker = static_cast<size_t>(
          std::min<double>(workers - 1, static_cast<double>(middle) / static_cast<double>(total) * workers));
      std::vector<Segment>& share = shares[worker];
      if (share.empty() || share.back().job != job) share.push_back({job, t, t});
      share.back().end = t + 1;
      done += costs[job][t];
    }
  }
  return shares;
}

}  // namespace

WorkPlan plan_work(const AttentionSpec& spec, const std::vector<JobSize>& jobs, bool cuda, bool backward) {
  WorkPlan plan;
  for (const JobSize& job : jobs) {
    const TileShape shape = choose_tile_shape(job, cuda, backward);
    plan.jobs.push_back({make_tiles(spec, shape.rows), shape.keys});
  }
  const int workers = cuda || at::in_parallel_region() ? 1 : at::get_num_threads();
  plan.shares = share_out(spec, jobs, plan.jobs, workers);
  return plan;
}

void run_workers(const WorkPlan& plan, const std::function<void(size_t)>& work) {
  at::parallel_for(0, static_cast<int64_t>(plan.shares.size()), 1, [&work](int64_t begin, int64_t end) {
    // Threads of the pool do not inherit the caller's dispatch state.
    const at::AutoDispatchBelowADInplaceOrView guard;
    for (int64_t worker = begin; worker < end; ++worker) work(static_cast<size_t>(worker));
  });
}

}  // namespace prulong
