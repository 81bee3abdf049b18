// SPDX-License-Identifier: MIT
#include "model/batch.h"

#include <ATen/ops/equal.h>

#include "common/error.h"
#include "tests/support/catch.h"

using namespace prulong;

namespace {

/// Three documents: of 3 tokens, of 1 and of 2.
Sequence three_documents(std::vector<uint8_t> is_answer = {}) {
  return {{5, 6, 7, 8, 9, 10}, {0, 3, 4, 6}, std::move(is_answer)};
}

template <class T>
std::vector<T> values_of(const at::Tensor& tensor) {
  std::vector<T> values;
  for (int64_t i = 0; i < tensor.numel(); ++i) values.push_back(tensor[i].item<T>());
  return values;
}

}  // namespace

TEST_CASE("A label is the next token of the same document") {
  const Batch batch = make_batch(three_documents(), 11, false, at::kCPU);
  CHECK(batch.input.tokens.scalar_type() == at::kLong);
  CHECK(values_of<int64_t>(batch.input.tokens) == std::vector<int64_t>{5, 6, 7, 8, 9, 10});
  CHECK(batch.input.cu_seqlens.scalar_type() == at::kInt);
  CHECK(values_of<int32_t>(batch.input.cu_seqlens) == std::vector<int32_t>{0, 3, 4, 6});
  CHECK(batch.input.max_seqlen == 3);
  CHECK(batch.labels.scalar_type() == at::kLong);
  CHECK(values_of<int64_t>(batch.labels) == std::vector<int64_t>{6, 7, -100, -100, 10, -100});
  CHECK(batch.label_count == 3);
  CHECK(values_of<int64_t>(batch.label_rows) == std::vector<int64_t>{0, 1, 4});
  CHECK_FALSE(batch.is_answer.defined());
}

TEST_CASE("Answers are marked where they are predicted, not where they stand") {
  // The token that opens a document is never predicted, answer or not.
  const Batch all = make_batch(three_documents({0, 0, 1, 1, 0, 1}), 11, false, at::kCPU);
  CHECK(values_of<int64_t>(all.labels) == std::vector<int64_t>{6, 7, -100, -100, 10, -100});
  CHECK(all.label_count == 3);
  REQUIRE(all.is_answer.scalar_type() == at::kBool);
  CHECK(values_of<int64_t>(all.is_answer.to(at::kLong)) == std::vector<int64_t>{0, 1, 0, 0, 1, 0});

  const Batch answers = make_batch(three_documents({0, 0, 1, 1, 0, 1}), 11, true, at::kCPU);
  CHECK(values_of<int64_t>(answers.labels) == std::vector<int64_t>{-100, 7, -100, -100, 10, -100});
  CHECK(answers.label_count == 2);
  CHECK(at::equal(answers.is_answer, all.is_answer));

  const Batch none = make_batch(three_documents({1, 0, 0, 1, 1, 0}), 11, true, at::kCPU);
  CHECK(values_of<int64_t>(none.labels) == std::vector<int64_t>(6, -100));
  CHECK(none.label_count == 0);
}

TEST_CASE("Answers are not to be had from a source without them") {
  CHECK_THROWS_WITH(make_batch(three_documents(), 11, true, at::kCPU),
                    ContainsSubstring("train.loss_tokens") && ContainsSubstring("type: recall"));
}
