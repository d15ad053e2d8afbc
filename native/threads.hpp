// Threads: a pool that sleeps between steps and survives a fork, and the floating-point mode that all of them work in.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
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

// The function by which GNU's OpenMP runtime runs a piece of work on its team: of a host that is loaded already, looked up by name.
using Team = void (*)(void (*work)(void* context), void* context, unsigned threads, unsigned flags);

// Whether this process was forked from one that had this module: no thread of a team has come along, though the runtime thinks so.
inline std::atomic<bool>& forked() {
  static std::atomic<bool> flag{false};
  return flag;
}

// Helpers that sleep between steps. A thread started anew would cost more: it waits on the processor of its parent, for a
// millisecond and more where measured, before the system moves it to an idle one; a sleeping one starts within 50 us.
//
// Nothing spins after a step. After a fork the child begins with an empty pool, because threads do not survive a fork.
// At exit nothing is joined: the pool is never destroyed and its threads hold nothing.
class Pool {
 public:
  // To be called once, before any step.
  static void prepare_for_forks() {
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, [] {
      current().store(nullptr);
      forked().store(true);
    });
#endif
  }

  static Pool& instance() {
    Pool* pool = current().load(std::memory_order_acquire);
    if (pool) return *pool;
    auto* fresh = new Pool;
    if (current().compare_exchange_strong(pool, fresh)) {
      pool = fresh;
    } else {
      delete fresh;
    }
    return *pool;
  }

  // Runs work() on this thread and on up to threads - 1 helpers. The work must share itself out, so that it is complete
  // even where no helper comes; it must not throw. Of two steps at the same time one has the helpers.
  //
  // A host's team, if there is one, takes the place of the helpers: after the host's own work its threads stay awake for a while, on
  // the processors that helpers would have to share with them.
  template <class Work>
  void run(int threads, Team team, const Work& work) noexcept {
    if (threads > 1 && team && !forked().load(std::memory_order_relaxed)) {
      team(
          [](void* context) {
            const IeeeMode mode;
            (*static_cast<const Work*>(context))();
          },
          const_cast<Work*>(&work), static_cast<unsigned>(threads), 0);
      return;
    }
    std::unique_lock<std::mutex> use(use_, std::defer_lock);
    const bool shared = threads > 1 && use.try_lock();
    if (shared) call_in(threads - 1, [](const void* context) { (*static_cast<const Work*>(context))(); }, &work);
    {
      const IeeeMode mode;
      work();
    }
    if (shared) send_home();
  }

 private:
  using Job = void (*)(const void*);

  static std::atomic<Pool*>& current() {
    static std::atomic<Pool*> pool{nullptr};
    return pool;
  }

  void call_in(int helpers, Job job, const void* context) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    const SignalsBlocked blocked;
    try {
      for (; threads_ < helpers && threads_ < kMaxThreads; ++threads_) std::thread([this] { wait_for_work(); }).detach();
    } catch (...) {  // no thread to be had: fewer will do
    }
    job_ = job;
    context_ = context;
    places_ = helpers;
    wake_.notify_all();
  }

  // Who has not come by now is not needed; who has is waited for.
  void send_home() noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    places_ = 0;
    done_.wait(lock, [this] { return working_ == 0; });
  }

  void wait_for_work() noexcept {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return places_ > 0; });
      --places_;
      ++working_;
      const Job job = job_;
      const void* context = context_;
      lock.unlock();
      {
        const IeeeMode mode;
        job(context);
      }
      lock.lock();
      if (--working_ == 0) done_.notify_one();
    }
  }

  std::mutex use_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  Job job_ = nullptr;
  const void* context_ = nullptr;
  int threads_ = 0;
  int places_ = 0;
  int working_ = 0;
};

}  // namespace openadam
