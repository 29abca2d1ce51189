#include "train/stop_signal.h"

#include <atomic>
#include <cstddef>

namespace jiboia {
namespace {

std::atomic<int> received_signal = 0;  // handlers may run on any thread
static_assert(decltype(received_signal)::is_always_lock_free, "handlers must not take locks");

void remember(int signal) { received_signal = signal; }

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  for (std::size_t i = 0; i < kSignals.size(); ++i) {
    sigaction(kSignals[i], nullptr, &before_[i]);
    if (before_[i].sa_handler == SIG_IGN && kSignals[i] != SIGTERM) continue;
    struct sigaction action = {};
    action.sa_handler = remember;
    action.sa_flags = SA_RESTART;
    // A terminal that closes may send SIGHUP twice: the kernel to its processes, the shell to its
    // jobs.
    if (kSignals[i] != SIGHUP) action.sa_flags |= static_cast<int>(SA_RESETHAND);
    sigaction(kSignals[i], &action, nullptr);
  }
}

StopSignal::~StopSignal() {
  for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
}

int StopSignal::received() const { return received_signal; }

}  // namespace jiboia
