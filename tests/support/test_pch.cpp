// SPDX-License-Identifier: MIT
// Empty: CMake makes a library's precompiled header only beside a source that uses it.
