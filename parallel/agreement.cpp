// SPDX-License-Identifier: MIT
#include "parallel/agreement.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

namespace prulong {
namespace {

std::string text_of(const at::Tensor& bytes, int64_t length) {
  return {reinterpret_cast<const char*>(bytes.const_data_ptr<uint8_t>()), static_cast<size_t>(length)};
}

/// [room] bytes, the text and then zeros.
at::Tensor bytes_of(const std::string& text, int64_t room) {
  at::Tensor bytes = at::zeros({room}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr<uint8_t>(), text.data(), text.size());
  return bytes;
}

at::Tensor number_of(int64_t value) { return at::full({1}, value, at::kLong); }

}  // namespace

bool any(const RankGroup& ranks, bool flag) { return largest(ranks, flag ? 1 : 0) != 0; }

int64_t largest(const RankGroup& ranks, int64_t number) {
  if (ranks.size() == 1) return number;
  const at::Tensor all = ranks.all_gather(number_of(number));
  const auto* const values = all.const_data_ptr<int64_t>();
  return *std::max_element(values, values + ranks.size());
}

std::vector<std::string> gather_texts(const RankGroup& ranks, const std::string& text) {
  const at::Tensor lengths = ranks.all_gather(number_of(static_cast<int64_t>(text.size())));
  const auto* const length = lengths.const_data_ptr<int64_t>();
  const int64_t room = *std::max_element(length, length + ranks.size());
  const at::Tensor all = ranks.all_gather(bytes_of(text, room));
  std::vector<std::string> texts;
  for (int64_t r = 0; r < ranks.size(); ++r) texts.push_back(text_of(all[r], length[r]));
  return texts;
}

std::string first_text(const RankGroup& ranks, const std::string& text) {
  const at::Tensor length = number_of(static_cast<int64_t>(text.size()));
  ranks.broadcast(length);
  const auto bytes = *length.const_data_ptr<int64_t>();
  const at::Tensor told = ranks.rank() == 0 ? bytes_of(text, bytes) : at::empty({bytes}, at::kByte);
  ranks.broadcast(told);
  return text_of(told, bytes);
}

TensorMap first_tensors(const RankGroup& ranks, const TensorMap& tensors) {
  if (ranks.size() == 1) return tensors;
  nlohmann::json described = nlohmann::json::array();
  for (const auto& [name, tensor] : tensors) {
    described.push_back({name, static_cast<int>(tensor.scalar_type()), tensor.sizes().vec()});
  }
  TensorMap told;
  for (const auto& item : nlohmann::json::parse(first_text(ranks, described.dump()))) {
    const auto name = item[0].get<std::string>();
    at::Tensor& tensor = told[name];
    if (ranks.rank() == 0) {
      tensor = tensors.at(name).cpu().contiguous();
    } else {
      tensor = at::empty(item[2].get<std::vector<int64_t>>(), static_cast<at::ScalarType>(item[1].get<int>()));
    }
    ranks.broadcast(tensor);
  }
  return told;
}

void check_same_on_all(const RankGroup& ranks, const std::map<std::string, std::string>& values) {
  constexpr auto kReplace = nlohmann::json::error_handler_t::replace;  // paths may hold anything
  const auto texts = gather_texts(ranks, nlohmann::json(values).dump(-1, ' ', false, kReplace));
  if (ranks.rank() != 0) return;
  const auto own = nlohmann::json::parse(texts[0]);
  for (size_t r = 1; r < texts.size(); ++r) {
    const auto other = nlohmann::json::parse(texts[r]);
    for (const auto& [name, value] : own.items()) {
      const auto found = other.find(name);
      if (found != other.end() && *found == value) continue;
      const std::string theirs = found == other.end() ? "nothing" : "'" + found->get<std::string>() + "'";
      throw Error("rank " + std::to_string(r) + " has " + name + " = " + theirs + ", this one has '" +
                  value.get<std::string>() + "'; start all ranks with the same configuration, model, data and program");
    }
  }
}

}  // namespace prulong
