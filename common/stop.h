// SPDX-License-Identifier: MIT
#pragma once

namespace prulong {

/// Makes SIGTERM, SIGINT and SIGHUP ask this program to stop: work under way looks for that between sequences, saves
/// and ends. A SIGHUP that was ignored at the program's start (nohup) stays ignored. A second SIGINT more than a second
/// after the first ends the program at once, unsaved: every file is replaced atomically, so what was saved before stays
/// whole. (Within the second it may be the same Ctrl-C, handed on by a launcher.) For mains.
void request_stop_on_signals();

/// Whether such a signal has come.
bool stop_requested();

/// Ends work that is not worth finishing when a stop is requested: an evaluation. Whoever catches it saves.
struct Stopped {};

/// @throws Stopped if a stop is requested.
void check_stop();

}  // namespace prulong
