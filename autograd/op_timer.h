#pragma once
#include <cstdint>
#include <exception>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/event.h"
#include "core/op.h"

namespace jiboia {

/// Adds up the time that a tape's ops take where they run, by op and pass.
class OpTimer {
 public:
  struct Entry {
    std::int64_t calls = 0;
    double seconds = 0;
  };
  using Key = std::pair<std::string, Pass>;

  /// Measures what `exec` is asked to do from its construction to its end. A null timer measures
  /// nothing.
  class Scope {
   public:
    Scope(OpTimer* timer, Exec& exec, const char* op, Pass pass)
        : timer_(timer), exec_(exec), op_(op), pass_(pass) {
      if (timer_) begin_.record(exec_);
    }
    ~Scope() noexcept(false) {
      // While an error is on its way there is nothing to measure, and the exec may be what failed.
      if (!timer_ || std::uncaught_exceptions() > exceptions_) return;
      Event end;
      end.record(exec_);
      timer_->pending_.push_back({{op_, pass_}, std::move(begin_), std::move(end)});
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    OpTimer* timer_;
    Exec& exec_;
    const char* op_;
    Pass pass_;
    int exceptions_ = std::uncaught_exceptions();
    Event begin_;
  };

  /// Ops measured so far that are not added up yet.
  std::size_t pending() const { return pending_.size(); }
  /// Waits for the `count` oldest of them and adds them up.
  void collect(std::size_t count);
  /// All that was collected.
  const std::map<Key, Entry>& entries() const { return entries_; }

 private:
  struct Measured {
    Key key;
    Event begin, end;
  };
  std::vector<Measured> pending_;
  std::map<Key, Entry> entries_;
};

/// A table of the entries, largest first, with their share of `total_s` and what is left of it.
std::string to_text(const OpTimer& timer, double total_s);

}  // namespace jiboia
