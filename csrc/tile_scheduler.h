// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "csrc/blocked_attention.h"

namespace prulong {

/// Consecutive queries of one document. `position` is the first query's position in it.
struct Tile {
  int64_t q_begin;
  int64_t rows;
  int64_t position;
  int64_t k_begin;
};

/// Tiles [begin, end) of one job, for one worker.
struct Segment {
  size_t job;
  size_t begin;
  size_t end;
};

/// Rows and keys of a tile: as many as keep a worker's scores inside its cache (CPU) or a bounded scratch (CUDA).
struct TileShape {
  int64_t rows;
  int64_t keys;
};
TileShape choose_tile_shape(HeadKind kind, int64_t heads, int64_t group, bool cuda, bool backward);

/// All tiles of all documents, in order.
std::vector<Tile> make_tiles(const AttentionSpec& spec, int64_t rows);

/// Cuts the list of all jobs' tiles into one stretch of about equal cost per worker; a job whose tiles fall to two
/// workers becomes a segment of each. Depends on its arguments alone, so results are reproducible.
std::vector<std::vector<Segment>> share_out(const AttentionSpec& spec, const std::vector<HeadKind>& kinds,
                                            const std::vector<std::vector<Tile>>& tiles, int workers);

/// Calls work(w) once for every w < workers, in parallel, with autograd off.
void run_workers(int workers, const std::function<void(int)>& work);

/// How many workers a call may use: the intra-op threads, or 1 on CUDA and inside another parallel region.
int count_workers(bool cuda);

}  // namespace prulong
