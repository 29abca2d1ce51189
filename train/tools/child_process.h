#pragma once
#include <functional>
#include <string>

namespace jiboia {

/// Runs `task` in a child process, so that whatever it does, this one lives on. Returns what went
/// wrong: the message of the exception that it threw, or the signal that ended it; "" when it
/// ended well. To be called while no other thread runs. Errors: Io when there is no process to be
/// had, or when the task threw one.
std::string run_in_child(const std::function<void()>& task);

}  // namespace jiboia
