#include "tests/cuda_emulator/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(JIBOIA_EMULATOR_UCONTEXT)
#define JIBOIA_OWN_SWITCH 1
#else
#define JIBOIA_OWN_SWITCH 0
#include <ucontext.h>
#endif

#if JIBOIA_OWN_SWITCH
// Pushes the registers that a call preserves, leaves the stack pointer in *save, and goes on where
// `load` was left. Kernels do not change the floating-point modes, so those are left alone.
extern "C" void jiboia_switch_stack(void** save, void* load);
asm(R"(
.text
.p2align 4
.globl jiboia_switch_stack
.hidden jiboia_switch_stack
.type jiboia_switch_stack, @function
jiboia_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size jiboia_switch_stack, . - jiboia_switch_stack
)");
#endif

namespace jiboia::emulated {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr int kPushedRegisters = 6;

/// The state of the fiber that a first resume() starts; enter() reads it before anything else.
void* starting = nullptr;

[[noreturn]] void give_up(const char* what) {
  std::perror(what);
  std::abort();
}

}  // namespace

struct Fiber::State {
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  std::byte* mapping = nullptr;  ///< one page that traps overflows, then the stack
  std::size_t mapped = 0;
  std::byte* bottom = nullptr;
  std::size_t size = 0;
  bool started = false;
#if JIBOIA_OWN_SWITCH
  void* stack_pointer = nullptr;         ///< of the fiber, while it is suspended
  void* caller_stack_pointer = nullptr;  ///< of whoever resumed it, while it runs
#else
  ucontext_t registers{}, caller{};
#endif
  // What AddressSanitizer wants to know of both stacks.
  void* fake_stack = nullptr;
  void* caller_fake_stack = nullptr;
  const void* caller_bottom = nullptr;
  std::size_t caller_size = 0;

  [[noreturn]] static void enter() {
    State& state = *static_cast<State*>(starting);
    state.entered(nullptr);
    state.body(state.context);
    std::fputs("the body of a fiber returned\n", stderr);
    std::abort();
  }
  void entered([[maybe_unused]] void* own_fake_stack) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(own_fake_stack, &caller_bottom, &caller_size);
#endif
  }
};

Fiber::Fiber(void (*body)(void*), void* context) : state_(std::make_unique<State>()) {
  State& state = *state_;
  state.body = body;
  state.context = context;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  state.mapped = page + kStackBytes;
  void* mapping = mmap(nullptr, state.mapped, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) give_up("the stack of an emulated GPU thread");
  state.mapping = static_cast<std::byte*>(mapping);
  if (mprotect(mapping, page, PROT_NONE) != 0) give_up("the guard page of a stack");
  state.bottom = state.mapping + page;
  // Stacks that all began at one offset of a page would fight for the same lines of the cache.
  static std::atomic<unsigned> count = 0;
  state.size = kStackBytes - 4096 + (count++ * 192) % 4096;
  std::byte* top = state.bottom + state.size / 16 * 16;
#if JIBOIA_OWN_SWITCH
  // What jiboia_switch_stack() pops: registers, then where to go. enter() finds the stack as after
  // a call: 8 bytes off a multiple of 16, under a return address, which is null.
  auto* frame = reinterpret_cast<void**>(top) - 2;
  frame[0] = reinterpret_cast<void*>(&State::enter);
  frame[1] = nullptr;
  for (int i = 1; i <= kPushedRegisters; ++i) frame[-i] = nullptr;
  state.stack_pointer = frame - kPushedRegisters;
#else
  getcontext(&state.registers);
  state.registers.uc_stack.ss_sp = state.bottom;
  state.registers.uc_stack.ss_size = static_cast<std::size_t>(top - state.bottom);
  makecontext(&state.registers, reinterpret_cast<void (*)()>(&State::enter), 0);
#endif
}

Fiber::~Fiber() { munmap(state_->mapping, state_->mapped); }

void Fiber::resume() {
  State& state = *state_;
  if (!state.started) starting = &state;
  state.started = true;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state.caller_fake_stack, state.bottom, state.size);
#endif
#if JIBOIA_OWN_SWITCH
  jiboia_switch_stack(&state.caller_stack_pointer, state.stack_pointer);
#else
  swapcontext(&state.caller, &state.registers);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(state.caller_fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
  State& state = *state_;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&state.fake_stack, state.caller_bottom, state.caller_size);
#endif
#if JIBOIA_OWN_SWITCH
  jiboia_switch_stack(&state.stack_pointer, state.caller_stack_pointer);
#else
  swapcontext(&state.registers, &state.caller);
#endif
  state.entered(state.fake_stack);
}

}  // namespace jiboia::emulated
