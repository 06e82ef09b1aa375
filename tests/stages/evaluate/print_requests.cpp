// Prints what a task asks of a model, for comparisons with other programs: JSON lines {"context", "continuation", "context_ids",
// "continuation_ids"}, one a request; of pages {"page"}.
//
//   print_requests MODEL TASK FILE lm-eval|paper LIMIT
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "model/model_config.h"
#include "stages/evaluate/tasks.h"

using namespace roundhouse;

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  try {
    const std::filesystem::path model(argv[1]);
    const auto tokenizer = load_tokenizer(model);
    const Protocol protocol =
        std::string(argv[4]) == "paper" ? Protocol::kPaper : Protocol::kLmEval;
    const RequestEncoder encoder(*tokenizer, read_model_config(model), protocol);
    for (const TaskDocument& document :
         read_task(read_task_template(argv[2]), argv[3], std::atoi(argv[5]))) {
      if (document.requests.empty())
        std::printf("%s\n", nlohmann::json({{"page", document.page}}).dump().c_str());
      for (const TextRequest& request : document.requests) {
        const TokenPair pair = encoder.encode(request);
        std::printf("%s\n", nlohmann::json({{"context", request.context},
                                            {"continuation", request.continuation},
                                            {"gold", document.gold},
                                            {"context_ids", pair.context},
                                            {"continuation_ids", pair.continuation}})
                                .dump()
                                .c_str());
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
