// Zeroed memory for states: aligned, and on huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace openadam {

// Asks for huge pages as far as [data, data + bytes) fills them. A wish: where it is refused, small pages do.
inline void advise_huge_pages(void* data, std::int64_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  const auto start = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (start + kHugePage - 1) & ~(kHugePage - 1);
  const std::uintptr_t end = (start + static_cast<std::uintptr_t>(bytes)) & ~(kHugePage - 1);
  if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
  (void)data;
  (void)bytes;
#endif
}

// Frees itself; data() is zeroed and aligned to 64 bytes.
class Memory {
 public:
  explicit Memory(std::size_t bytes) {
#if defined(__linux__)
    constexpr std::size_t kHugePage = std::size_t{2} << 20;
    if (bytes >= kHugePage) {
      // The mapping starts on any 4 KiB page; room for one more huge page lets the data start on one of its own.
      mapped_ = bytes + kHugePage;
      base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (base_ == MAP_FAILED) throw std::bad_alloc();
      const std::uintptr_t start = (reinterpret_cast<std::uintptr_t>(base_) + kHugePage - 1) & ~(kHugePage - 1);
      data_ = reinterpret_cast<void*>(start);
      advise_huge_pages(data_, static_cast<std::int64_t>(bytes + kHugePage - 1));
      return;
    }
#endif
    data_ = ::operator new(bytes ? bytes : 1, std::align_val_t{64});
    std::memset(data_, 0, bytes);
  }

  ~Memory() {
#if defined(__linux__)
    if (mapped_) {
      munmap(base_, mapped_);
      return;
    }
#endif
    ::operator delete(data_, std::align_val_t{64});
  }

  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }

 private:
  void* base_ = nullptr;
  void* data_ = nullptr;
  std::size_t mapped_ = 0;
};

}  // namespace openadam
