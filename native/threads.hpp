// Threads that live for one step: nothing spins afterwards, and nothing is left that a fork could break.
#pragma once

#include <array>
#include <system_error>
#include <thread>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif

namespace openadam {

constexpr int kMaxThreads = 64;

// IEEE arithmetic (round to nearest, subnormals kept) while in scope; the caller's mode is put back after.
class IeeeMode {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  IeeeMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~IeeeMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  IeeeMode() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
  }
  ~IeeeMode() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#else
  IeeeMode() {}
#endif
 public:
  IeeeMode(const IeeeMode&) = delete;
  IeeeMode& operator=(const IeeeMode&) = delete;
};

// Helpers take no signals: those stay with the threads of the program.
class SignalsBlocked {
 public:
#if defined(__unix__) || defined(__APPLE__)
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &saved_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &saved_, nullptr); }

 private:
  sigset_t saved_;
#else
  SignalsBlocked() {}
#endif
 public:
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;
};

// Runs work() on this thread and on up to threads - 1 helpers. The work must share itself out, so that it is complete
// even where no helper could be started; it must not throw.
template <class Work>
void fork_join(int threads, const Work& work) noexcept {
  std::array<std::thread, kMaxThreads> helpers;
  const int wanted = threads < kMaxThreads ? threads : kMaxThreads;
  const auto run = [&work]() noexcept {
    const IeeeMode mode;
    work();
  };
  if (wanted > 1) {
    const SignalsBlocked blocked;
    try {
      for (int i = 1; i < wanted; ++i) helpers[static_cast<std::size_t>(i)] = std::thread(run);
    } catch (...) {  // no thread to be had: fewer will do
    }
  }
  run();
  for (std::thread& helper : helpers)
    if (helper.joinable()) helper.join();
}

}  // namespace openadam
