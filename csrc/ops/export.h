// SPDX-License-Identifier: MIT
#pragma once

/// Marks what libprulong_ops exports; everything else is hidden.
#define PRULONG_API __attribute__((visibility("default")))
