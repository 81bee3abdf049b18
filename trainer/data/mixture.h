// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <vector>

#include "trainer/data/source.h"

namespace prulong {

/// A source and its share of a mixture.
struct WeightedSource {
  std::unique_ptr<Source> source;
  double weight = 1;  ///< > 0, relative to the others
};

/// Interleaves sources by weight without chance: after any number of draws each source has had its share, within one
/// for two or three sources, within (sources - 1) / 2 for more (where several small ones come due together).
/// Which source gives sequence n, and the how-manieth of its own it is, follows from n alone.
std::unique_ptr<Source> mix_sources(std::vector<WeightedSource> sources);

}  // namespace prulong
