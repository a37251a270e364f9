// What both programs that run a .pte share: their errors, their log, their threads, and loading.

#pragma once

#include <executorch/extension/module/module.h>
#include <executorch/runtime/platform/platform.h>

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <stdexcept>
#include <string>

// The wheel has this class in libexecutorch_threadpool.so, but not its header.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace runner {

// Exit statuses: a wrong command line, a file that is not what it should be, a device that does not do its part.
constexpr int kUsage = 2;
constexpr int kBadInput = 4;
constexpr int kDevice = 5;

struct Failure : std::runtime_error {
  int status;
  Failure(int status, const std::string& line) : std::runtime_error(line), status(status) {}
};

// The runtime's last complaint; everything else that it logs is dropped, standard error is for our own lines.
inline std::string& complaint() {
  static std::string text;
  return text;
}

inline void on_log(et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t,
                   const char* message, size_t length) {
  if (level == kError || level == kFatal) complaint() = " (" + std::string(message, length) + ")";
}

inline void start_runtime(uint32_t threads) {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(on_log, __FILE__));
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool == nullptr || !pool->_unsafe_reset_threadpool(threads)) {
    throw Failure(kDevice, "the runtime cannot start its threads: it does not understand /proc/cpuinfo");
  }
}

[[noreturn]] inline void refuse(const std::string& path) {
  throw Failure(kBadInput, path + ": not an ExecuTorch program that this runtime loads, truncated or damaged?" +
                               complaint() + "; make it again with `paredown run`");
}

// Opens a program and checks its offsets, so that a damaged file is an error and no crash.
inline void open(executorch::extension::Module& module, const std::string& path) {
  const auto checked = executorch::runtime::Program::Verification::InternalConsistency;
  const bool file = std::filesystem::is_regular_file(path);
  if (!file || module.load(checked) != executorch::runtime::Error::Ok) refuse(path);
}

// Loads everything of a method, so that the first inference is like the others.
inline void load(executorch::extension::Module& module, const std::string& path,
                 const std::string& method = "forward") {
  open(module, path);
  if (module.load_method(method) != executorch::runtime::Error::Ok) refuse(path);
}

// Of a program: what it does, or one line of why it cannot.
template <typename Program>
int status_of(Program program) {
  try {
    return program();
  } catch (const Failure& failure) {
    std::cerr << failure.what() << std::endl;
    return failure.status;
  }
}

}  // namespace runner
