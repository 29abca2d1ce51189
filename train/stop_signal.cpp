#include "train/stop_signal.h"

#include <csignal>
#include <initializer_list>

namespace jiboia {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void remember(int signal) { received_signal = signal; }

void set_handler(int signal, void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(signal, &action, nullptr);
}

bool is_ignored(int signal) {
  struct sigaction action = {};
  sigaction(signal, nullptr, &action);
  return action.sa_handler == SIG_IGN;
}

}  // namespace

StopSignal::StopSignal() : heeds_hangup_(!is_ignored(SIGHUP)) {
  received_signal = 0;
  for (int signal : {SIGTERM, SIGINT}) {
    set_handler(signal, remember, static_cast<int>(SA_RESETHAND) | SA_RESTART);
  }
  // A terminal that closes may send it twice: the kernel to its processes, the shell to its jobs.
  if (heeds_hangup_) set_handler(SIGHUP, remember, SA_RESTART);
}

StopSignal::~StopSignal() {
  for (int signal : {SIGTERM, SIGINT}) set_handler(signal, SIG_DFL, 0);
  if (heeds_hangup_) set_handler(SIGHUP, SIG_DFL, 0);
}

int StopSignal::received() const { return received_signal; }

}  // namespace jiboia
