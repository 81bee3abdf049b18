// SPDX-License-Identifier: MIT
// Run with several ranks by torchrun, alone otherwise: what is true of one rank is what is true of any number.
#include "parallel/mesh.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include "model/open_model.h"
#include "parallel/agreement.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

/// One for all tests, closed before the libraries' own statics.
Mesh& mesh() {
  static const std::unique_ptr<Mesh> kMesh = Mesh::from_environment(1, std::chrono::seconds(30));
  return *kMesh;
}

/// What rank r holds, told by all ranks: small numbers, exact in every dtype.
at::Tensor held_by(int64_t rank, at::IntArrayRef sizes, at::ScalarType dtype) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return at::arange(count, at::kLong).add(rank * 7).remainder(16).view(sizes).to(dtype);
}

std::vector<int64_t> contexts(int64_t ranks) {
  std::vector<int64_t> divisors;
  for (int64_t c = 1; c <= ranks; ++c) {
    if (ranks % c == 0) divisors.push_back(c);
  }
  return divisors;
}

void check_collectives(const RankGroup& group, const std::vector<int64_t>& members, at::ScalarType dtype) {
  const auto size = static_cast<int64_t>(members.size());
  REQUIRE(group.size() == size);
  const int64_t me = members[static_cast<size_t>(group.rank())];
  REQUIRE(me == mesh().world().rank());
  const std::vector<int64_t> shape = {3, 2};
  std::vector<at::Tensor> all;
  at::Tensor sum = at::zeros(shape, dtype);
  for (const int64_t r : members) {
    all.push_back(held_by(r, shape, dtype));
    sum += all.back();
  }
  const int64_t bytes = all[0].nbytes();

  int64_t before = group.bytes_sent();
  const at::Tensor reduced = held_by(me, shape, dtype);
  group.all_reduce(reduced);
  CHECK(at::equal(reduced, sum));
  CHECK(group.bytes_sent() - before == 2 * bytes * (size - 1) / size);

  before = group.bytes_sent();
  CHECK(at::equal(group.all_gather(held_by(me, shape, dtype)), at::stack(all)));
  CHECK(at::equal(group.all_gather(held_by(me, {2, 3}, dtype).t()).select(0, group.rank()),
                  held_by(me, {2, 3}, dtype).t()));
  CHECK(group.bytes_sent() - before == 2 * bytes * (size - 1));

  before = group.bytes_sent();
  at::Tensor expected = at::zeros(shape, dtype);
  for (const int64_t r : members) expected += held_by(r, {size, 3, 2}, dtype)[group.rank()];
  CHECK(at::equal(group.reduce_scatter(held_by(me, {size, 3, 2}, dtype)), expected));
  CHECK(group.bytes_sent() - before == bytes * (size - 1));

  for (int64_t root = 0; root < size; ++root) {
    const at::Tensor told = held_by(me, shape, dtype);
    group.broadcast(told, root);
    CHECK(at::equal(told, all[static_cast<size_t>(root)]));
  }
  group.barrier();
}

/// Rank i sends (i + 2 j) % 3 rows to rank j; the row's values say from whom to whom.
void check_all_to_all(const RankGroup& group) {
  const int64_t me = group.rank();
  const auto count = [](int64_t from, int64_t to) { return (from + 2 * to) % 3; };
  std::vector<int64_t> sent, received;
  std::vector<at::Tensor> rows = {at::empty({0, 2}, at::kFloat)}, expected = rows;
  for (int64_t other = 0; other < group.size(); ++other) {
    sent.push_back(count(me, other));
    received.push_back(count(other, me));
    rows.push_back(at::full({sent.back(), 2}, static_cast<double>(10 * me + other), at::kFloat));
    expected.push_back(at::full({received.back(), 2}, static_cast<double>(10 * other + me), at::kFloat));
  }
  const int64_t before = group.bytes_sent();
  CHECK(at::equal(group.all_to_all(at::cat(rows), sent, received), at::cat(expected)));
  int64_t away = 0;
  for (int64_t other = 0; other < group.size(); ++other) away += other == me ? 0 : sent[static_cast<size_t>(other)];
  CHECK(group.bytes_sent() - before == away * 2 * 4);
  // Nobody sends anything.
  const std::vector<int64_t> none(static_cast<size_t>(group.size()), 0);
  CHECK(group.all_to_all(at::empty({0, 2}, at::kFloat), none, none).size(0) == 0);
}

}  // namespace

TEST_CASE("Collectives of all groups in every dtype", "[ranks]") {
  const int64_t ranks = mesh().world().size(), me = mesh().world().rank();
  for (const int64_t context : contexts(ranks)) {
    mesh().split(context);
    std::vector<int64_t> all, data, same_sequence;
    for (int64_t r = 0; r < ranks; ++r) {
      all.push_back(r);
      if (r % context == me % context) data.push_back(r);
      if (r / context == me / context) same_sequence.push_back(r);
    }
    for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf, at::kLong}) {
      check_collectives(mesh().world(), all, dtype);
      check_collectives(mesh().data(), data, dtype);
      check_collectives(mesh().context(), same_sequence, dtype);
    }
    check_all_to_all(mesh().world());
    check_all_to_all(mesh().data());
    check_all_to_all(mesh().context());
  }
}

TEST_CASE("Long sums are the same bits on every rank", "[ranks]") {
  const RankGroup& world = mesh().world();
  const at::Tensor values = at::arange(100001, at::kFloat).mul(0.1 * static_cast<double>(world.rank() + 1)).sin();
  world.all_reduce(values);
  const at::Tensor all = world.all_gather(values);
  for (int64_t r = 0; r < world.size(); ++r) CHECK(at::equal(all[r], values));
}

TEST_CASE("What ranks settle", "[ranks]") {
  const RankGroup& world = mesh().world();
  const int64_t me = world.rank(), last = world.size() - 1;
  CHECK_FALSE(any(world, false));
  CHECK(any(world, me == last));
  CHECK(largest(world, -me) == 0);
  CHECK(largest(world, me) == last);
  const auto texts = gather_texts(world, std::string(static_cast<size_t>(me), 'x'));  // the first is empty
  for (int64_t r = 0; r <= last; ++r)
    CHECK(texts.at(static_cast<size_t>(r)) == std::string(static_cast<size_t>(r), 'x'));
  CHECK(first_text(world, "rank " + std::to_string(me)) == "rank 0");
  TensorMap own;
  if (me == 0) {
    own = {{"a", at::arange(6, at::kDouble).view({2, 3}).t()},
           {"b", at::zeros({}, at::kLong)},
           {"c", at::zeros({0}, at::kHalf)}};
  }
  const TensorMap told = first_tensors(world, own);
  REQUIRE(told.size() == 3);
  CHECK(at::equal(told.at("a"), at::arange(6, at::kDouble).view({2, 3}).t()));
  CHECK((told.at("b").dim() == 0 && told.at("c").scalar_type() == at::kHalf));
}

TEST_CASE("Ranks with other values are named by the first", "[ranks]") {
  const RankGroup& world = mesh().world();
  check_same_on_all(world, {{"key", "value"}});
  const bool odd = world.rank() == world.size() - 1 && world.size() > 1;
  const std::map<std::string, std::string> values = {{"a", "same"}, {"key", odd ? "other" : "value"}};
  if (world.rank() == 0 && world.size() > 1) {
    CHECK_THROWS_WITH(
        check_same_on_all(world, values),
        "rank " + std::to_string(world.size() - 1) +
            " has key = 'other', this one has 'value'; start all ranks with the same configuration, model, "
            "data and program");
  } else {
    check_same_on_all(world, values);
  }
}

TEST_CASE("A process takes the GPU that its LOCAL_RANK names") {
  Launch launch;
  launch.size = 8;
  launch.local_rank = 1;
  CHECK(gpu_of(launch, 4) == 1);
  launch.local_rank = 3;
  CHECK_THROWS_WITH(gpu_of(launch, 2),
                    "LOCAL_RANK 3: no GPU of that number, this machine has 2; start one process for each (torchrun "
                    "--nproc-per-node), or model.device=cpu");
}

TEST_CASE("A context that does not divide the ranks is refused", "[ranks]") {
  const int64_t ranks = mesh().world().size();
  CHECK_THROWS_WITH(mesh().split(ranks + 1), "parallel.context: expected a divisor of the number of ranks, which is " +
                                                 std::to_string(ranks) + ", found " + std::to_string(ranks + 1));
  CHECK_THROWS_AS(mesh().split(0), ConfigError);
}

TEST_CASE("A mesh of one opens nothing and copies nothing") {
  Mesh alone;
  alone.split(1);
  CHECK(alone.leader());
  const at::Tensor tensor = at::arange(6, at::kFloat).view({1, 6});
  CHECK(alone.world().all_gather(tensor).is_alias_of(tensor));
  CHECK(alone.data().reduce_scatter(tensor).is_alias_of(tensor));
  CHECK(alone.context().all_to_all(tensor, {1}, {1}).is_alias_of(tensor));
  alone.enter("anywhere");
  CHECK_THROWS_AS(alone.run("name", [] { throw Error("passes"); }), Error);
  CHECK(alone.bytes_sent() == 0);
}
