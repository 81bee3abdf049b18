// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "csrc/hopper/schedule_plan.h"

namespace prulong::kernels::tests {

/// Bounds of documents of the given lengths.
inline std::vector<int> bounds_of(const std::vector<int>& lengths) {
  std::vector<int> bounds = {0};
  for (const int length : lengths) bounds.push_back(bounds.back() + length);
  return bounds;
}

/// A batch in host memory and its plan. Not to be copied: the schedule points into it.
class HostPlan {
 public:
  HostPlan(const std::vector<int>& q_lengths, const std::vector<int>& k_lengths, const std::vector<float>& gates,
           int group, int head_dim, Locality locality, const ScheduleOptions& options)
      : q_bounds_(bounds_of(q_lengths)), k_bounds_(bounds_of(k_lengths)), gates_(gates) {
    Batch batch = {};
    batch.documents = static_cast<int>(q_lengths.size());
    batch.q_tokens = q_bounds_.back();
    batch.k_tokens = k_bounds_.back();
    batch.kv_heads = static_cast<int>(gates.size());
    batch.query_heads = batch.kv_heads * group;
    batch.head_dim = head_dim;
    batch.locality = locality;
    batch.q_bounds = q_bounds_.data();
    batch.k_bounds = k_bounds_.data();
    batch.gate = gates_.data();
    replan(batch, options);
  }
  HostPlan(const HostPlan&) = delete;
  HostPlan& operator=(const HostPlan&) = delete;

  /// Plans another batch, with memory that holds no zeros by chance.
  void replan(const Batch& batch, const ScheduleOptions& options) {
    const size_t bytes = schedule_bytes(batch, options);
    constexpr size_t kGuard = 64;
    memory_.assign((bytes + kGuard) / sizeof(Unit) + 1, Unit{{-1, -1, -1, -1}});
    schedule_ = make_schedule(batch, options, memory_.data());
    plan_on_host(schedule_);
    const auto* end = reinterpret_cast<const unsigned char*>(memory_.data()) + bytes;
    for (size_t i = 0; i < kGuard; ++i) overrun_ = overrun_ || end[i] != 0xff;
  }

  const Schedule& schedule() const { return schedule_; }
  std::vector<int>& q_bounds() { return q_bounds_; }
  /// Was anything written behind the plan's memory?
  bool overrun() const { return overrun_; }

  std::vector<QueryItem> query_items() const {
    std::vector<QueryItem> items;
    for (int i = 0; i < query_item_count(schedule_); ++i) items.push_back(query_item(schedule_, i));
    return items;
  }
  std::vector<KeyItem> key_items() const {
    std::vector<KeyItem> items;
    for (int i = 0; i < key_item_count(schedule_); ++i) items.push_back(key_item(schedule_, i));
    return items;
  }

 private:
  struct alignas(16) Unit {
    int words[4];
  };
  std::vector<int> q_bounds_, k_bounds_;
  std::vector<float> gates_;
  std::vector<Unit> memory_;
  Schedule schedule_;
  bool overrun_ = false;
};

}  // namespace prulong::kernels::tests
