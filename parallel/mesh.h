// SPDX-License-Identifier: MIT
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/launch.h"

namespace prulong {

class Watch;

/// What ranks do together failed: one of them is gone, or has not come in time.
struct RankError : Error {
  using Error::Error;
};

/// Ranks that exchange tensors. All of them call the same functions in the same order, with tensors of one dtype and,
/// but where sizes are given, one shape. Tensors on the CPU go through Gloo, those on a GPU through NCCL, ordered with
/// the current stream as any kernel is. Nothing is differentiated. In a group of one nothing is sent.
/// Every function throws RankError when another rank is gone or does not come.
class RankGroup {
 public:
  RankGroup();  ///< of this process alone
  ~RankGroup();
  RankGroup(const RankGroup&) = delete;
  RankGroup& operator=(const RankGroup&) = delete;

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }

  /// Sums over ranks, in place and with the same bits on each. @param tensor  contiguous.
  void all_reduce(const at::Tensor& tensor) const;

  /// The ranks' tensors of one shape, in order: [size, ...].
  at::Tensor all_gather(const at::Tensor& part) const;

  /// The sum over ranks of parts[rank()]. @param parts  [size, ...]. @returns [...].
  at::Tensor reduce_scatter(const at::Tensor& parts) const;

  /// Rows from every rank to every rank. @param rows  [n, ...], those for the first rank first.
  /// @param sent, received  [size]: how many rows go to and come from each; `sent` adds up to n.
  /// @returns the received rows, those of the first rank first.
  at::Tensor all_to_all(const at::Tensor& rows, const std::vector<int64_t>& sent,
                        const std::vector<int64_t>& received) const;

  /// Overwrites a tensor with the root's. @param tensor  contiguous.
  void broadcast(const at::Tensor& tensor, int64_t root = 0) const;

  void barrier() const;

  /// Bytes that this rank handed to others so far, as the operation needs them: its part to each other rank
  /// (all_gather, broadcast's root), the others' parts (reduce_scatter), their rows (all_to_all), and 2 (size - 1) /
  /// size of the tensor (all_reduce). What a library sends on behalf of others, and barriers, are not counted.
  int64_t bytes_sent() const { return bytes_sent_; }

 private:
  friend class Mesh;
  struct Links;
  template <class Start>
  void run(const char* name, const at::Tensor& tensor, const Start& start) const;

  std::unique_ptr<Links> links_;  // none: alone
  int64_t rank_ = 0, size_ = 1;
  mutable int64_t bytes_sent_ = 0;
};

/// @throws ConfigError where `context` ranks to a sequence do not divide the ranks.
void check_context(int64_t context, int64_t ranks);

/// The ranks of a run, a process each. Rank d * context + c works at stretch c of the d-th of the sequences under way.
class Mesh {
 public:
  /// This process alone: opens nothing.
  Mesh();
  /// Meets the other ranks of a launch; alone where it has one.
  /// @param timeout  how long a rank may wait for others, and stay in one place (enter).
  /// @throws RankError naming those that have not come; Error where the port is in use or nobody answers.
  Mesh(const Launch& launch, std::chrono::milliseconds timeout);
  ~Mesh();
  Mesh(const Mesh&) = delete;
  Mesh& operator=(const Mesh&) = delete;

  /// The ranks of torchrun's environment (read_launch).
  /// @param context  ranks that share a sequence, as split.
  /// @throws ConfigError naming a variable; as the constructor and split.
  static std::unique_ptr<Mesh> from_environment(int64_t context, std::chrono::milliseconds timeout);

  /// Forms data() and context(); until then every rank has sequences of its own.
  /// @param context  ranks that share a sequence.
  /// @throws ConfigError where they do not divide the ranks.
  void split(int64_t context);

  const RankGroup& world() const { return *world_; }
  const RankGroup& data() const { return *data_; }        ///< with the same stretch of other sequences
  const RankGroup& context() const { return *context_; }  ///< with the other stretches of the same sequence

  const Launch& launch() const { return launch_; }
  /// The one rank that writes files and speaks.
  bool leader() const { return world_->rank() == 0; }
  /// Of all groups.
  int64_t bytes_sent() const;

  /// Says where this rank is ("step 12: sums over ranks"), for whoever must explain a failure. Staying in one place for
  /// longer than the timeout ends the run.
  void enter(const std::string& place) const;

  /// Runs a program's work. With other ranks an exception ends this process: one of the ranks says in one line which
  /// of them failed and why, and each leaves its reason to torchrun. Alone, exceptions pass.
  /// @param program  its name, before that line.
  void run(const std::string& program, const std::function<void()>& body);

 private:
  struct Store;
  std::shared_ptr<RankGroup> connect(const std::string& name, int64_t rank, int64_t size) const;
  [[noreturn]] void end(const std::string& reason, bool lost, int status) const;

  Launch launch_;
  std::string program_;
  std::chrono::milliseconds timeout_{0};
  std::unique_ptr<Store> store_;
  std::shared_ptr<RankGroup> world_, data_, context_;
  std::unique_ptr<Watch> watch_;  // its thread uses the others
};

}  // namespace prulong
