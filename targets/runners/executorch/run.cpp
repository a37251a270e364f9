// Runs a .pte on samples from a file and times one of them; the same command line, output file and JSON as
// targets/runners/run_litert.py.
//
//   run MODEL --inputs IN.bin --outputs OUT.bin [--runs N] [--warmup W] [--threads T] [--marks]
//
// IN.bin holds raw samples one behind the other, OUT.bin gets all outputs of each sample, both NCHW in the
// model's own types. Exit status: 0, 2 for a wrong command line, 4 for a file that is not what it should be,
// 5 for a device that does not do its part.
//
// Built by targets/runners/executorch_build.py against the shared libraries of the ExecuTorch wheel.

#include "runner.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/exec_aten/util/dim_order_util.h>

#include <sys/resource.h>
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::Module;
using executorch::runtime::EValue;
using runner::complaint;
using runner::Failure;
using runner::kBadInput;
using runner::kDevice;
using runner::kUsage;

struct Options {
  std::string model, inputs, outputs;
  int runs = 10, warmup = 1, threads = 1;
  bool marks = false;
};

struct Tensor {
  std::vector<SizesType> shape;
  ScalarType type;
};

std::string usage() {
  return "usage: run MODEL --inputs IN.bin --outputs OUT.bin [--runs N] [--warmup W] [--threads T] [--marks]";
}

int number(std::string_view option, std::string_view text, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    throw Failure(kUsage, std::string(option) + " is `" + std::string(text) + "`, not a number from " +
                              std::to_string(least) + " on");
  }
  return value;
}

Options parse(int count, char** arguments) {
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string_view name = arguments[i];
    if (name == "--marks") {
      options.marks = true;
    } else if (name.starts_with("--")) {
      if (++i == count) throw Failure(kUsage, std::string(name) + " needs a value; " + usage());
      const char* value = arguments[i];
      if (name == "--inputs") options.inputs = value;
      else if (name == "--outputs") options.outputs = value;
      else if (name == "--runs") options.runs = number(name, value, 0);
      else if (name == "--warmup") options.warmup = number(name, value, 0);
      else if (name == "--threads") options.threads = number(name, value, 1);
      else throw Failure(kUsage, "unknown option " + std::string(name) + "; " + usage());
    } else if (options.model.empty()) {
      options.model = name;
    } else {
      throw Failure(kUsage, "one model, not also `" + std::string(name) + "`; " + usage());
    }
  }
  if (options.model.empty() || options.inputs.empty() || options.outputs.empty()) {
    throw Failure(kUsage, usage());
  }
  if (options.marks && options.threads != 1) {
    throw Failure(kUsage,
                  "--marks needs --threads 1: several threads wait for each other, never twice alike");
  }
  return options;
}

size_t bytes_of(ScalarType type, const std::string& model) {
  if (type == ScalarType::Char) return 1;
  if (type == ScalarType::Float) return 4;
  throw Failure(kBadInput, model + ": the model has tensors that are neither int8 nor float32");
}

size_t bytes_of(const Tensor& tensor, const std::string& model) {
  size_t bytes = bytes_of(tensor.type, model);
  for (const auto size : tensor.shape) bytes *= size;
  return bytes;
}

// Works on tensors and on their descriptions in a program.
template <typename Value>
Tensor described(const Value& tensor, const std::string& model) {
  const auto order = tensor.dim_order();
  if (!executorch::runtime::is_contiguous_dim_order(order.data(), order.size())) {
    throw Failure(kBadInput, model + ": the model has tensors that do not lie in memory as NCHW");
  }
  return {{tensor.sizes().begin(), tensor.sizes().end()}, tensor.scalar_type()};
}

Tensor input_of(Module& module, const std::string& path) {
  const auto meta = module.method_meta("forward");
  if (!meta.ok() || meta->num_inputs() != 1 || !meta->input_tensor_meta(0).ok()) {
    throw Failure(kBadInput, path + ": the model does not take one tensor");
  }
  return described(*meta->input_tensor_meta(0), path);
}

std::vector<EValue> infer(Module& module, const EValue& input, const std::string& path) {
  auto outputs = module.forward(input);
  if (!outputs.ok()) throw Failure(kBadInput, path + ": the model does not run" + complaint());
  return std::move(*outputs);
}

// Every sample of the input file through the model. The output file appears under its name when it is whole.
class Samples {
 public:
  Samples(const Options& options, size_t bytes) : options_(options), sample_(bytes) {
    std::error_code error;
    const auto size = fs::file_size(options.inputs, error);
    if (error) throw Failure(kBadInput, options.inputs + ": cannot read this file: " + error.message());
    if (size == 0 || size % bytes != 0) {
      throw Failure(kBadInput, options.inputs + ": " + std::to_string(size) +
                                   " bytes are no whole samples of " + std::to_string(bytes) + " bytes");
    }
    count_ = size / bytes;
    file_.open(options.inputs, std::ios::binary);
  }

  size_t count() const { return count_; }
  void* data() { return sample_.data(); }

  void read(size_t index) {
    file_.seekg(static_cast<std::streamoff>(index * sample_.size()));
    file_.read(sample_.data(), static_cast<std::streamsize>(sample_.size()));
    if (!file_) throw Failure(kBadInput, options_.inputs + ": cannot read sample " + std::to_string(index));
  }

  std::vector<Tensor> run_all(Module& module, const EValue& input) {
    const std::string part = options_.outputs + ".part";
    std::ofstream out(part, std::ios::binary);
    std::vector<Tensor> outputs;
    auto told = Clock::now();
    for (size_t i = 0; i < count_; ++i) {
      read(i);
      outputs.clear();
      for (const auto& value : infer(module, input, options_.model)) {
        const auto& tensor = value.toTensor();
        outputs.push_back(described(tensor, options_.model));
        out.write(static_cast<const char*>(tensor.const_data_ptr()),
                  static_cast<std::streamsize>(bytes_of(outputs.back(), options_.model)));
      }
      if (Clock::now() - told >= std::chrono::seconds(1)) {
        told = Clock::now();
        std::cerr << i + 1 << '/' << count_ << std::endl;
      }
    }
    out.close();
    std::error_code failed;
    if (out) fs::rename(part, options_.outputs, failed);
    if (!out || failed) throw Failure(kDevice, options_.outputs + ": cannot write this file; is there room?");
    return outputs;
  }

 private:
  const Options& options_;
  std::vector<char> sample_;
  size_t count_ = 0;
  std::ifstream file_;
};

// Seen by the instruction-count plugin (targets/emulated/instructions.c); to a kernel, a question about a
// file that is not open. The tags: an even number begins, the next one ends.
constexpr int kMark = 0x7e570000;
constexpr int kEmpty = 0, kInference = 2;

void bracketed(const std::function<void()>& call, int tag) {
  isatty(kMark | tag);
  call();
  isatty(kMark | (tag + 1));
}

std::vector<double> times(const std::function<void()>& infer, const Options& options) {
  for (int i = 0; i < options.warmup; ++i) infer();
  std::function<void()> call = infer;
  if (options.marks) {
    call = [&] { bracketed(infer, kInference); };
    for (int i = 0; i < 3; ++i) bracketed([] {}, kEmpty);  // what the bracket itself costs
  }
  std::vector<double> found;
  for (int i = 0; i < options.runs; ++i) {
    const auto start = Clock::now();
    call();
    found.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  return found;
}

// VmHWM and not ru_maxrss, which starts with the peak of the process that started this one.
long peak_rss_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stol(line.substr(6));
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

template <typename Items, typename Print>
std::string json_list(const Items& items, Print print) {
  std::ostringstream text;
  text << '[';
  for (const auto& item : items) {
    if (text.tellp() > 1) text << ", ";
    print(text, item);
  }
  text << ']';
  return text.str();
}

void print_tensor(std::ostream& text, const Tensor& tensor) {
  text << "{\"shape\": " << json_list(tensor.shape, [](auto& out, auto size) { out << size; })
       << ", \"dtype\": \"" << (tensor.type == ScalarType::Char ? "int8" : "float32") << "\"}";
}

int run(const Options& options) {
  runner::start_runtime(options.threads);
  const auto start = Clock::now();
  Module module(options.model);
  runner::load(module, options.model);
  const double load_ms = std::chrono::duration<double, std::milli>(Clock::now() - start).count();

  const Tensor input = input_of(module, options.model);
  Samples samples(options, bytes_of(input, options.model));
  const auto tensor = executorch::extension::from_blob(samples.data(), input.shape, input.type);
  const auto outputs = samples.run_all(module, tensor);
  samples.read(0);
  const auto found = times([&] { infer(module, tensor, options.model); }, options);

  std::cout << "{\"runtime\": \"executorch\", \"version\": \"" << EXECUTORCH_VERSION << "\", \"samples\": "
            << samples.count() << ", \"load_ms\": " << load_ms << ", \"times_ms\": "
            << json_list(found, [](auto& out, auto ms) { out << ms; })
            << ", \"peak_rss_kib\": " << peak_rss_kib() << ", \"threads\": " << options.threads
            << ", \"input\": ";
  print_tensor(std::cout, input);
  std::cout << ", \"outputs\": " << json_list(outputs, print_tensor) << "}" << std::endl;
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  return runner::status_of([&] { return run(parse(count, arguments)); });
}
