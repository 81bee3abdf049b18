// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace prulong {

/// Named measurements of one step.
using Scalars = std::vector<std::pair<std::string, double>>;

/// A TensorBoard event file: TFRecord framing around protocol buffers of type tensorflow.Event. Every start of a run
/// opens a file of its own, named so that TensorBoard reads them in order; each says after which step it goes on, and
/// TensorBoard then forgets what older files hold of later steps.
class EventFile {
 public:
  /// Opens a new file in `folder`, which must exist.
  /// @param resume_step  the last step of older files that stays valid; 0 for a new run.
  /// @throws Error naming the file and the system's reason.
  EventFile(const std::filesystem::path& folder, int64_t resume_step);

  /// Appends the scalars of a step, as float32, and hands them to the system: a kill loses no finished step.
  /// @throws Error naming the file.
  void write(int64_t step, const Scalars& scalars);

 private:
  void append(std::string_view event);

  std::filesystem::path path_;
  std::ofstream out_;
};

/// The checksum of the framing: CRC-32C (Castagnoli), rotated right by 15 bits, plus 0xa282ead8.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace prulong
