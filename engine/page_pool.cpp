// SPDX-License-Identifier: MIT
#include "engine/page_pool.h"

#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <bit>

namespace prulong {

void NumberSet::insert(int64_t number) {
  const auto word = static_cast<size_t>(number / 64);
  if (word >= words_.size()) {
    words_.resize(word + 1);
    summary_.resize(word / 64 + 1);
  }
  words_[word] |= uint64_t{1} << (number % 64);
  summary_[word / 64] |= uint64_t{1} << (word % 64);
  ++size_;
}

void NumberSet::erase(int64_t number) {
  const auto word = static_cast<size_t>(number / 64);
  words_[word] &= ~(uint64_t{1} << (number % 64));
  if (words_[word] == 0) summary_[word / 64] &= ~(uint64_t{1} << (word % 64));
  --size_;
}

int64_t NumberSet::lowest() const {
  const auto full = std::find_if(summary_.begin(), summary_.end(), [](uint64_t bits) { return bits != 0; });
  const auto word = (full - summary_.begin()) * 64 + std::countr_zero(*full);
  return word * 64 + std::countr_zero(words_[static_cast<size_t>(word)]);
}

PagePool::PagePool(int64_t pages, int64_t page, int64_t head_dim, at::ScalarType dtype, at::Device device)
    : pages_(pages),
      half_bytes_(page * head_dim * static_cast<int64_t>(c10::elementSize(dtype))),
      k_memory_(PageMemory::reserve(pages * half_bytes_, device)),
      v_memory_(PageMemory::reserve(pages * half_bytes_, device)) {
  const auto tensor = [&](const std::shared_ptr<PageMemory>& memory) {
    return at::from_blob(
        memory->data(), {pages, page, head_dim}, [memory](void*) {}, at::TensorOptions(device).dtype(dtype), device);
  };
  k_pages_ = tensor(k_memory_);
  v_pages_ = tensor(v_memory_);
}

std::pair<int64_t, int64_t> PagePool::pages_in(int64_t piece) const {
  const int64_t begin = piece * k_memory_->piece_bytes(), end = begin + k_memory_->piece_bytes();
  return {begin / half_bytes_, std::min(pages(), (end + half_bytes_ - 1) / half_bytes_)};
}

bool PagePool::has_memory(int64_t page) const {
  const int64_t piece = k_memory_->piece_bytes();
  for (int64_t i = page * half_bytes_ / piece; i <= ((page + 1) * half_bytes_ - 1) / piece; ++i) {
    if (!k_memory_->taken(i) || !v_memory_->taken(i)) return false;
  }
  return true;
}

void PagePool::prepare(int64_t n) {
  if (ready_.size() >= n) return;
  k_memory_->check_room(std::max((n - ready_.size()) * page_bytes(), 2 * k_memory_->piece_bytes()));
  while (ready_.size() < n) {
    const int64_t piece = next_piece_;
    if (!k_memory_->taken(piece) || !v_memory_->taken(piece)) {
      k_memory_->take(piece);
      v_memory_->take(piece);
      const auto [begin, end] = pages_in(piece);
      references_.resize(std::max(references_.size(), static_cast<size_t>(end)));
      for (int64_t page = begin; page < end; ++page) {
        if (references(static_cast<int32_t>(page)) == 0 && has_memory(page)) ready_.insert(page);
      }
    }
    ++next_piece_;
  }
}

int32_t PagePool::take() {
  const int64_t page = ready_.lowest();
  ready_.erase(page);
  references_[static_cast<size_t>(page)] = 1;
  most_used_ = std::max(most_used_, ++used_);
  return static_cast<int32_t>(page);
}

void PagePool::release(int32_t page) {
  if (--references_[static_cast<size_t>(page)] > 0) return;
  ready_.insert(page);
  --used_;
}

void PagePool::trim() {
  for (int64_t piece = 0; piece < k_memory_->pieces(); ++piece) {
    if (!k_memory_->taken(piece)) continue;
    const auto [begin, end] = pages_in(piece);
    const auto first = references_.begin() + begin, last = references_.begin() + end;
    if (std::any_of(first, last, [](int32_t references) { return references != 0; })) continue;
    for (int64_t page = begin; page < end; ++page) {
      if (has_memory(page)) ready_.erase(page);
    }
    k_memory_->give_back(piece);
    v_memory_->give_back(piece);
    next_piece_ = std::min(next_piece_, piece);
  }
}

}  // namespace prulong
