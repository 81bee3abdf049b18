// SPDX-License-Identifier: MIT
// Catch2 of Debian 12 (2.13) or Ubuntu 24.04 (3.4) behind one include.
#pragma once

#ifdef PRULONG_CATCH2_V3
#include <catch2/catch_all.hpp>
using Catch::Approx;
using Catch::Matchers::ContainsSubstring;
#else
#include <catch2/catch.hpp>
inline auto ContainsSubstring(const std::string& text) { return Catch::Matchers::Contains(text); }
#endif
