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

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  for (int signal : {SIGTERM, SIGINT}) {
    set_handler(signal, remember, static_cast<int>(SA_RESETHAND) | SA_RESTART);
  }
}

StopSignal::~StopSignal() {
  for (int signal : {SIGTERM, SIGINT}) set_handler(signal, SIG_DFL, 0);
}

int StopSignal::received() const { return received_signal; }

}  // namespace jiboia
