// Runs a language model's .pte, a chunk at a time, for a process that talks to it by pipes.
//
//   language MODEL [--threads T]
//
// First standard output gets one line of JSON: vocabulary, context and chunk. Then, for each chunk: standard
// input has int32 count (1 to chunk), int32 position of the first token, count int32 tokens; standard output
// gets as many float32 logits as the vocabulary has tokens, those after the last token. A negative count says
// that no logits are wanted: then it gets one float32, 0. All little-endian. It ends with its input. Exit status
// as that of run.cpp.
//
// Built by targets/runners/executorch_build.py against the shared libraries of the ExecuTorch wheel.

#include "operators.h"
#include "runner.h"

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include <algorithm>
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Error;
using runner::complaint;
using runner::Failure;
using runner::kBadInput;
using runner::kUsage;

struct Options {
  std::string model;
  uint32_t threads = 1;
};

Options parse(int count, char** arguments) {
  const Failure wrong(kUsage, "usage: language MODEL [--threads T]");
  if (count != 2 && count != 4) throw wrong;
  Options options{arguments[1]};
  if (count == 4) {
    const std::string_view text = arguments[3];
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), options.threads);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    if (std::string_view(arguments[2]) != "--threads" || !whole || options.threads < 1) throw wrong;
  }
  return options;
}

class Model {
 public:
  // Mapped, not read: the delegate packs weights of its own, and of the embedding few rows are ever looked up.
  // Memory is shared because both methods work in one cache.
  Model(const std::string& path, uint32_t threads)
      : path_(path), module_(path, Module::LoadMode::Mmap, nullptr, nullptr, nullptr, true) {
    runner::open(module_, path);
    const auto methods = module_.method_names();
    const bool ours = methods.ok() && methods->contains("step") && operators::install();
    if (ours) {
      single_ = "step";
      if (methods->contains("read")) several_ = "read";  // programs of before have `step` alone
      team_.emplace(threads);
      team::present = &*team_;
    }
    {
      // Of one token XNNPACK has small operations alone: its threads would be in the way of the team's.
      std::optional<executorch::extension::threadpool::NoThreadPoolGuard> alone;
      if (ours) alone.emplace();
      runner::load(module_, path, single_);
    }
    vocabulary = fact("get_vocab_size");
    context = fact("get_max_context_len");
    chunk = fact("get_max_seq_len");
    if (module_.load_method(several_) != Error::Ok) {
      throw Failure(kBadInput, path_ + ": no language model, it has no `" + several_ + "`" + complaint());
    }
  }

  // The logits after the last of these tokens, which has to be read by itself where they are wanted. Those before
  // it are read chunk by chunk, the last one filled up with tokens that are written over, if there is room.
  const float* read(const std::vector<int64_t>& tokens, int64_t position, bool wanted) {
    size_t done = 0;
    for (size_t left; (left = tokens.size() - wanted - done) > 1 && position + chunk <= context;) {
      const auto part = std::min<size_t>(left, chunk);
      std::vector<int64_t> filled(tokens.begin() + done, tokens.begin() + done + part);
      filled.resize(chunk, tokens[done]);
      call(several_, filled, position);
      done += part;
      position += part;
    }
    for (; done < tokens.size(); ++done) call(single_, {tokens[done]}, position++);
    if (!wanted) return nullptr;
    const auto& logits = kept_.at(0).toTensor();
    if (logits.scalar_type() != ScalarType::Float || logits.numel() != vocabulary) {
      throw Failure(kBadInput, path_ + ": the model does not give one float for each token");
    }
    return logits.const_data_ptr<float>();
  }

  int64_t vocabulary, context, chunk;

 private:
  void call(const std::string& method, std::vector<int64_t> tokens, int64_t position) {
    using Sizes = std::vector<executorch::aten::SizesType>;
    const auto count = static_cast<executorch::aten::SizesType>(tokens.size());
    const auto given = from_blob(tokens.data(), Sizes{1, count}, ScalarType::Long);
    const auto start = from_blob(&position, Sizes{1}, ScalarType::Long);
    auto outputs = module_.execute(method, {given, start});
    if (!outputs.ok()) throw Failure(kBadInput, path_ + ": the model does not run" + complaint());
    kept_ = std::move(*outputs);
  }

  int64_t fact(const std::string& name) {
    auto values = module_.execute(name);
    if (!values.ok() || values->empty() || !values->at(0).isInt()) {
      throw Failure(kBadInput, path_ + ": no language model, it has no `" + name + "`");
    }
    return values->at(0).toInt();
  }

  const std::string path_;
  std::optional<team::Team> team_;
  Module module_;
  std::string single_ = "forward", several_ = "prefill";  // the methods that read one token, and a chunk
  std::vector<executorch::runtime::EValue> kept_;
};

template <typename Value>
bool receive(Value* values, size_t count) {
  const size_t found = std::fread(values, sizeof(Value), count, stdin);
  if (found != count && found != 0) throw Failure(kUsage, "the input ends within a chunk");
  return found == count;
}

int run(const Options& options) {
  std::signal(SIGINT, SIG_IGN);  // Ctrl-C in a terminal reaches all its processes: it is for the one that talks to us
  runner::start_runtime(options.threads);
  Model model(options.model, options.threads);
  std::cout << "{\"vocabulary\": " << model.vocabulary << ", \"context\": " << model.context
            << ", \"chunk\": " << model.chunk << "}" << std::endl;

  for (int32_t head[2]; receive(head, 2);) {
    const bool wanted = head[0] >= 0;
    if (!wanted) head[0] = head[0] < -model.chunk ? 0 : -head[0];
    if (head[0] < 1 || head[0] > model.chunk || head[1] < 0 || head[1] > model.context - head[0]) {
      throw Failure(kUsage, "a chunk of " + std::to_string(head[0]) + " tokens at " +
                                std::to_string(head[1]) + " is beyond the model");
    }
    std::vector<int32_t> given(head[0]);
    if (!receive(given.data(), given.size())) throw Failure(kUsage, "the input ends within a chunk");
    for (const auto token : given) {
      if (token < 0 || token >= model.vocabulary) throw Failure(kUsage, "a token beyond the vocabulary");
    }
    const float none = 0, *logits = model.read({given.begin(), given.end()}, head[1], wanted);
    const size_t size = logits ? static_cast<size_t>(model.vocabulary) : 1;
    if (!logits) logits = &none;
    if (std::fwrite(logits, sizeof(float), size, stdout) != size || std::fflush(stdout) != 0) return 0;
  }
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  return runner::status_of([&] { return run(parse(count, arguments)); });
}
