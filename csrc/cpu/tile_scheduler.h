// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <type_traits>
#include <vector>

#include "csrc/cpu/blocked_jobs.h"

namespace prulong {

/// Consecutive queries of one document.
struct QueryTile {
  DocumentRows document;
  Range rows;  // of the document's queries
  /// Of the first row in the packed queries.
  int q_begin() const { return document.q_begin + rows.begin; }
  Range positions() const { return {document.first_position() + rows.begin, document.first_position() + rows.end}; }
};

/// Tiles [begin, end) of one job, for one worker.
struct Segment {
  size_t job;
  size_t begin;
  size_t end;
};

/// A job to be cut into tiles: `heads` KV heads of one kind, with `group` query heads each.
struct JobSize {
  HeadKind kind;
  int64_t heads;
  int64_t group;
};

/// All tiles of all documents for one job, in order. A tile's scores are computed for at most `max_keys` keys at a
/// time: as many as keep them inside a worker's cache (CPU) or a bounded scratch (CUDA).
struct JobTiles {
  std::vector<QueryTile> tiles;
  int max_keys;
};

/// Who computes what. The list of all jobs' tiles is cut into one segment of about equal cost per worker; a job whose
/// tiles fall to two workers becomes a segment of each.
struct WorkPlan {
  std::vector<JobTiles> jobs;
  std::vector<std::vector<Segment>> shares;  // by worker
};

/// Plans for as many workers as a call may use: the intra-op threads, or 1 on CUDA and inside another parallel region.
/// Depends on that and its arguments alone, so results are reproducible.
WorkPlan plan_work(const AttentionSpec& spec, const std::vector<JobSize>& jobs, bool cuda, bool backward);

/// The same for ForwardJobs or BackwardJobs, at least one.
template <class Job>
WorkPlan plan_work(const AttentionSpec& spec, const std::vector<Job>& jobs) {
  std::vector<JobSize> sizes;
  for (const Job& job : jobs) sizes.push_back({job.kind, job.q.size(1), job.q.size(2)});
  return plan_work(spec, sizes, jobs.front().q.is_cuda(), std::is_same_v<Job, BackwardJob>);
}

/// Calls work(w) once for every worker of the plan, in parallel, with autograd off.
void run_workers(const WorkPlan& plan, const std::function<void(size_t)>& work);

}  // namespace prulong
