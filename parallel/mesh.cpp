// SPDX-License-Identifier: MIT
#include "parallel/mesh.h"

#include <ATen/ops/empty.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <mutex>
#include <numeric>
#include <random>
#include <thread>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <utility>

#include "common/quote.h"
#include "parallel/watch.h"

namespace prulong {
namespace {

using StorePtr = c10::intrusive_ptr<c10d::Store>;

constexpr std::chrono::milliseconds kBeat{500};
/// The watch, which knows more, speaks before the libraries do.
constexpr std::chrono::seconds kGrace{5};

/// Threads that are made meanwhile leave signals to the main thread.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

std::string first_line(const std::exception& error) {
  const std::string what = error.what();
  return what.substr(0, what.find('\n'));
}

StorePtr open_store(const Launch& launch, bool serve, std::chrono::milliseconds timeout) {
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = serve;
  options.waitWorkers = false;
  options.timeout = timeout;
  const std::string port = std::to_string(launch.port);
  try {
    return c10::make_intrusive<c10d::PrefixStore>("prulong/" + launch.run,
                                                  c10::make_intrusive<c10d::TCPStore>(launch.address, options));
  } catch (const std::exception& error) {
    const std::string what = first_line(error);
    if (serve && what.find("EADDRINUSE") != std::string::npos) {
      throw Error("MASTER_PORT " + port + ": in use on this machine; choose another (torchrun --master-port)");
    }
    throw RankError("MASTER_ADDR " + launch.address + ", MASTER_PORT " + port + ": no answer: " + what);
  }
}

class StoreBoard : public Board {
 public:
  explicit StoreBoard(StorePtr store) : store_(std::move(store)) {}
  void set(const std::string& key, const std::string& text) override { store_->set(key, text); }
  std::optional<std::string> get(const std::string& key) override {
    if (!store_->check({key})) return std::nullopt;
    return store_->get_to_str(key);
  }
  int64_t count(const std::string& key) override { return store_->add(key, 1); }

 private:
  StorePtr store_;
};

/// How ranks meet on a store that may hold what earlier ones left there: launchers keep it over restarts, and count
/// these differently. Each says hello with a number of its own until the first rank welcomes it to a generation; once
/// all have joined that, it may go on.
class Meeting {
 public:
  Meeting(c10d::Store& store, const Launch& launch) : store_(store), launch_(launch) {
    std::random_device random;
    own_ = std::to_string((uint64_t{random()} << 32) | random());
  }

  /// @returns the generation, under whose name nobody has left anything.
  /// @throws RankError naming those that have not come.
  std::string meet(std::chrono::milliseconds timeout) {
    const auto end = std::chrono::steady_clock::now() + timeout;
    if (launch_.rank != 0) store_.set(hello(launch_.rank), own_);
    while (!(launch_.rank == 0 ? gather() : join())) {
      if (std::chrono::steady_clock::now() > end) {
        throw RankError("rank " + std::to_string(launch_.rank) + " waited " + std::to_string(timeout.count() / 1000) +
                        " s for " + missing() +
                        " to start; see what those say, or give them more time by parallel.timeout");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return generation_;
  }

 private:
  static std::string hello(int64_t rank) { return "hello/" + std::to_string(rank); }
  static std::string welcome(int64_t rank, const std::string& number) {
    return "welcome/" + std::to_string(rank) + "/" + number;
  }
  std::string joined(int64_t rank) const { return generation_ + "/joined/" + std::to_string(rank); }

  bool gather() {
    generation_ = own_;
    bool all = true;
    for (int64_t r = 1; r < launch_.size; ++r) {
      if (store_.check({hello(r)})) store_.set(welcome(r, store_.get_to_str(hello(r))), generation_);
      all = all && store_.check({joined(r)});
    }
    if (all) store_.set(generation_ + "/complete", std::string("1"));
    return all;
  }

  bool join() {
    const std::string key = welcome(launch_.rank, own_);
    if (!store_.check({key})) return false;
    generation_ = store_.get_to_str(key);  // a first rank that was ended meanwhile may have been before another
    store_.set(joined(launch_.rank), std::string("1"));
    return store_.check({generation_ + "/complete"});
  }

  std::string missing() {
    if (generation_.empty()) return "rank 0";
    std::string names;
    for (int64_t r = 1; r < launch_.size; ++r) {
      if (!store_.check({joined(r)})) names += (names.empty() ? "rank " : ", rank ") + std::to_string(r);
    }
    return names.empty() ? "rank 0" : names;
  }

  c10d::Store& store_;
  const Launch& launch_;
  std::string own_, generation_;
};

/// @throws RankError as Meeting::meet, and where the store is lost.
std::string meet(c10d::Store& store, const Launch& launch, std::chrono::milliseconds timeout) {
  try {
    return Meeting(store, launch).meet(timeout);
  } catch (const RankError&) {
    throw;
  } catch (const std::exception& error) {
    throw RankError("rank " + std::to_string(launch.rank) + " lost the others at the start: " + first_line(error));
  }
}

std::vector<int64_t> with_size(int64_t size, at::IntArrayRef rest) {
  std::vector<int64_t> sizes = {size};
  sizes.insert(sizes.end(), rest.begin(), rest.end());
  return sizes;
}

}  // namespace

struct Mesh::Store {
  StorePtr store;
};

struct RankGroup::Links {
  StorePtr store;
  std::chrono::milliseconds timeout;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
  c10::intrusive_ptr<c10d::ProcessGroupNCCL> nccl;  // from the first tensor on a GPU on
};

RankGroup::RankGroup() = default;

RankGroup::~RankGroup() {
  if (links_ && links_->nccl) links_->nccl->shutdown();
}

/// Starts an operation on the library for the tensor's device, and waits for it.
template <class Start>
void RankGroup::run(const char* name, const at::Tensor& tensor, const Start& start) const {
  try {
    if (tensor.is_cuda() && !links_->nccl) {
      const SignalsBlocked blocked;
      auto options = c10d::ProcessGroupNCCL::Options::create();
      options->timeout = links_->timeout;
      links_->nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(links_->store, static_cast<int>(rank_),
                                                                 static_cast<int>(size_), options);
    }
    c10d::Backend& library = tensor.is_cuda() ? static_cast<c10d::Backend&>(*links_->nccl) : *links_->gloo;
    start(library)->wait();
  } catch (const std::exception& error) {
    throw RankError(std::string("the ranks' ") + name + " failed: " + first_line(error));
  }
}

void RankGroup::all_reduce(const at::Tensor& tensor) const {
  if (size_ == 1) return;
  std::vector<at::Tensor> tensors = {tensor};
  run("all_reduce", tensor, [&](c10d::Backend& library) { return library.allreduce(tensors); });
  bytes_sent_ += static_cast<int64_t>(tensor.nbytes()) * 2 * (size_ - 1) / size_;
}

at::Tensor RankGroup::all_gather(const at::Tensor& part) const {
  if (size_ == 1) return part.unsqueeze(0);
  const at::Tensor output = at::empty(with_size(size_, part.sizes()), part.options());
  at::Tensor from = part.contiguous().view(-1), to = output.view(-1);
  run("all_gather", part, [&](c10d::Backend& library) { return library._allgather_base(to, from); });
  bytes_sent_ += static_cast<int64_t>(from.nbytes()) * (size_ - 1);
  return output;
}

at::Tensor RankGroup::reduce_scatter(const at::Tensor& parts) const {
  TORCH_CHECK(parts.dim() > 0 && parts.size(0) == size_, "reduce_scatter: expected a part for each of ", size_,
              " ranks, found shape ", parts.sizes());
  if (size_ == 1) return parts[0];
  const at::Tensor output = at::empty(parts.sizes().slice(1), parts.options());
  at::Tensor from = parts.contiguous().view(-1), to = output.view(-1);
  run("reduce_scatter", parts, [&](c10d::Backend& library) { return library._reduce_scatter_base(to, from); });
  bytes_sent_ += static_cast<int64_t>(to.nbytes()) * (size_ - 1);
  return output;
}

at::Tensor RankGroup::all_to_all(const at::Tensor& rows, const std::vector<int64_t>& sent,
                                 const std::vector<int64_t>& received) const {
  const auto count = static_cast<size_t>(size_);
  TORCH_CHECK(rows.dim() > 0 && sent.size() == count && received.size() == count &&
                  std::accumulate(sent.begin(), sent.end(), int64_t{0}) == rows.size(0),
              "all_to_all: expected the rows of each of ", size_, " ranks, found ", rows.sizes(), " with counts of ",
              sent.size(), " and ", received.size(), " ranks");
  if (size_ == 1) return rows;
  at::Tensor input = rows.contiguous();
  at::Tensor output = at::empty(
      with_size(std::accumulate(received.begin(), received.end(), int64_t{0}), rows.sizes().slice(1)), rows.options());
  auto sizes_in = sent, sizes_out = received;
  run("all_to_all", rows,
      [&](c10d::Backend& library) { return library.alltoall_base(output, input, sizes_out, sizes_in); });
  if (rows.size(0) > 0) {
    const int64_t row_bytes = static_cast<int64_t>(input.nbytes()) / rows.size(0);
    bytes_sent_ += row_bytes * (rows.size(0) - sent[static_cast<size_t>(rank_)]);
  }
  return output;
}

void RankGroup::broadcast(const at::Tensor& tensor, int64_t root) const {
  if (size_ == 1) return;
  std::vector<at::Tensor> tensors = {tensor};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  run("broadcast", tensor, [&](c10d::Backend& library) { return library.broadcast(tensors, options); });
  if (rank_ == root) bytes_sent_ += static_cast<int64_t>(tensor.nbytes()) * (size_ - 1);
}

void RankGroup::barrier() const {
  if (size_ == 1) return;
  run("barrier", at::Tensor(at::empty({0})), [&](c10d::Backend& library) { return library.barrier(); });
}

void check_context(int64_t context, int64_t ranks) {
  if (context >= 1 && ranks % context == 0) return;
  throw ConfigError("parallel.context: expected a divisor of the number of ranks, which is " + std::to_string(ranks) +
                    ", found " + std::to_string(context));
}

Mesh::Mesh() : world_(std::make_shared<RankGroup>()), data_(world_), context_(std::make_shared<RankGroup>()) {}

Mesh::Mesh(const Launch& launch, std::chrono::milliseconds timeout) : Mesh() {
  launch_ = launch;
  timeout_ = timeout;
  if (launch.size == 1) return;
  const SignalsBlocked blocked;
  const bool serve = launch.rank == 0 && !launch.launcher_serves;
  store_ = std::make_unique<Store>(open_store(launch, serve, timeout));
  const std::string generation = meet(*store_->store, launch, timeout);
  const auto of_generation = [&](const StorePtr& store) {
    return c10::make_intrusive<c10d::PrefixStore>(generation, store);
  };
  store_->store = of_generation(store_->store);
  world_ = data_ = connect("world", launch.rank, launch.size);
  // A connection of its own: the first may be waiting while a rank shows that it lives.
  watch_ = std::make_unique<Watch>(
      std::make_unique<StoreBoard>(of_generation(open_store(launch, false, timeout))), launch.rank, launch.size,
      timeout, kBeat,
      [this] { end("no step within parallel.timeout, " + std::to_string(timeout_.count() / 1000) + " s", true, 1); });
}

Mesh::~Mesh() = default;

std::unique_ptr<Mesh> Mesh::from_environment(int64_t context, std::chrono::milliseconds timeout) {
  auto mesh = std::make_unique<Mesh>(read_launch().value_or(Launch{}), timeout);
  mesh->split(context);
  return mesh;
}

void Mesh::split(int64_t context) {
  const int64_t size = world_->size(), rank = world_->rank();
  check_context(context, size);
  const SignalsBlocked blocked;
  const auto alone = std::make_shared<RankGroup>();
  const int64_t d = rank / context, c = rank % context, data = size / context;
  context_ = context == 1 ? alone : data == 1 ? world_ : connect("context/" + std::to_string(d), c, context);
  data_ = data == 1 ? alone : context == 1 ? world_ : connect("data/" + std::to_string(c), d, data);
}

std::shared_ptr<RankGroup> Mesh::connect(const std::string& name, int64_t rank, int64_t size) const {
  auto group = std::make_shared<RankGroup>();
  group->rank_ = rank;
  group->size_ = size;
  group->links_ = std::make_unique<RankGroup::Links>();
  group->links_->store = c10::make_intrusive<c10d::PrefixStore>(name, store_->store);
  group->links_->timeout = timeout_ + kGrace;
  try {
    group->links_->gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(
        group->links_->store, static_cast<int>(rank), static_cast<int>(size),
        c10d::ProcessGroupGloo::Options::create_default(timeout_ + kGrace));
  } catch (const std::exception& error) {
    throw RankError("rank " + std::to_string(launch_.rank) + " cannot reach the other ranks: " + first_line(error) +
                    "; on machines with several networks name the right one by GLOO_SOCKET_IFNAME");
  }
  return group;
}

int64_t Mesh::bytes_sent() const {
  int64_t sum = world_->bytes_sent();
  for (const auto& group : {data_, context_}) sum += group == world_ ? 0 : group->bytes_sent();
  return sum;
}

void Mesh::enter(const std::string& place) const {
  if (watch_) watch_->enter(place);
}

void Mesh::run(const std::string& program, const std::function<void()>& body) {
  if (!watch_) return body();
  program_ = program;
  try {
    body();
    enter("end");
    world_->barrier();
  } catch (const RankError& error) {
    end(error.what(), true, 1);
  } catch (const ConfigError& error) {
    end(error.what(), false, 2);
  } catch (const std::exception& error) {
    end(first_line(error), false, 1);
  }
}

/// Without destructors: the libraries' wait for ranks that are gone.
void Mesh::end(const std::string& reason, bool lost, int status) const {
  static std::mutex once;  // the watching thread and the main thread may come here at the same time
  once.lock();
  const auto [said, ours] = watch_->explain(reason, lost);
  const std::string line = printable(said);
  leave_reason(line);
  std::fflush(stdout);
  if (ours) {
    std::fprintf(stderr, "%s: %s\n", program_.c_str(), line.c_str());
    std::fflush(stderr);
    watch_->explained(line);
  }
  ::_exit(status);
}

}  // namespace prulong
