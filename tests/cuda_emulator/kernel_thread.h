#pragma once

/// The OS thread that kernels run on. Variables declared __shared__ are thread_local in the
/// emulator, so that they can be told from all others: they are this thread's.
namespace jiboia::emulated {

/// Calls call(context, fresh_thread) on the kernel thread, and returns when it has returned; one
/// call runs at a time. `fresh_thread` is true for the first call on an OS thread: the first of the
/// process, and of a process that forked.
void on_kernel_thread(void (*call)(void* context, bool fresh_thread), void* context);

/// Sets every byte of the kernel thread's __shared__ variables. Called on that thread.
void fill_static_shared_memory(int value);

}  // namespace jiboia::emulated
