// SPDX-License-Identifier: MIT
// Precompiled for the tests.
#pragma once

#include "model/torch_pch.h"
#include "tests/support/catch.h"
