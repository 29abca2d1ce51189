#pragma once
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "core/op.h"

namespace jiboia {

/// Adds up the time that a tape's ops take, by op and pass.
class OpTimer {
 public:
  struct Entry {
    std::int64_t calls = 0;
    double seconds = 0;
  };
  using Key = std::pair<std::string, Pass>;

  /// Measures from its construction to its end. A null timer measures nothing.
  class Scope {
   public:
    Scope(OpTimer* timer, const char* op, Pass pass) : timer_(timer), op_(op), pass_(pass) {
      if (timer_) begin_ = Clock::now();
    }
    ~Scope() {
      if (timer_)
        timer_->add(op_, pass_, std::chrono::duration<double>(Clock::now() - begin_).count());
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    using Clock = std::chrono::steady_clock;
    OpTimer* timer_;
    const char* op_;
    Pass pass_;
    Clock::time_point begin_;
  };

  void add(const char* op, Pass pass, double seconds) {
    Entry& entry = entries_[{op, pass}];
    ++entry.calls;
    entry.seconds += seconds;
  }
  const std::map<Key, Entry>& entries() const { return entries_; }

 private:
  std::map<Key, Entry> entries_;
};

/// A table of the entries, largest first, with their share of `total_s` and what is left of it.
std::string to_text(const OpTimer& timer, double total_s);

}  // namespace jiboia
