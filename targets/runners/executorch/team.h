// Threads that stay awake between two operations of a token, which come some ten microseconds apart.
//
// The runtime's own threads sleep after each operation; waking one takes as long as half of a layer's matrix.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace team {

using Clock = std::chrono::steady_clock;

constexpr auto kAwake = std::chrono::milliseconds(2);  // without work, as between two tokens; then a thread sleeps
constexpr int kShares = 4;  // of each thread: one that was held up leaves the rest of them to the others

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// What all do together: shares of 0 to `count`, which whoever is free takes.
class Team {
 public:
  // Of no more threads than there are processors: one that waits for another to leave its own is worse than none.
  explicit Team(uint32_t threads) {
    const uint32_t size = std::min(threads, std::thread::hardware_concurrency());
    for (uint32_t i = 1; i < size; ++i) others_.emplace_back([this] { work(); });
  }
  ~Team() {
    call_ = nullptr;
    begin();
    for (auto& each : others_) each.join();
  }
  Team(const Team&) = delete;

  int64_t size() const { return static_cast<int64_t>(others_.size()) + 1; }

  // Calls `part` with shares of 0 to `count`, of `least` or more, and multiples of it but for the last one.
  template <typename Part>
  void run(int64_t count, int64_t least, const Part& part) {
    const int64_t parts = (count + least - 1) / least, shares = std::min(parts, size() * kShares);
    if (shares < 2 || others_.empty()) return part(0, count);
    part_ = &part;
    call_ = [](const void* part, int64_t from, int64_t to) { (*static_cast<const Part*>(part))(from, to); };
    count_ = count;
    size_ = (parts + shares - 1) / shares * least;
    next_.store(0, std::memory_order_relaxed);
    busy_.store(static_cast<int64_t>(others_.size()), std::memory_order_relaxed);
    begin();
    take();
    for (int spins = 0; busy_.load(std::memory_order_acquire) > 0; ++spins) {
      pause();
      if (spins > kPatience) std::this_thread::yield();  // the others have no processor
    }
  }

 private:
  static constexpr int kPatience = 10000;

  void begin() {
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
  }

  void take() {
    for (int64_t from; (from = next_.fetch_add(size_, std::memory_order_relaxed)) < count_;) {
      call_(part_, from, std::min(from + size_, count_));
    }
  }

  void work() {
    for (uint32_t seen = 0;;) {
      const auto until = Clock::now() + kAwake;
      while (round_.load(std::memory_order_acquire) == seen) {
        for (int i = 0; i < 4; ++i) pause();
        if (Clock::now() > until) round_.wait(seen, std::memory_order_acquire);
      }
      ++seen;  // no round begins before all have done the one before
      if (call_ == nullptr) return;
      take();
      busy_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> others_;
  void (*call_)(const void*, int64_t, int64_t) = nullptr;
  const void* part_ = nullptr;
  int64_t count_ = 0, size_ = 0;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int64_t> busy_{0};
};

inline Team* present = nullptr;  // that of the process, if it has one

}  // namespace team
