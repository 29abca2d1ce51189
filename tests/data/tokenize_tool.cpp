// Lets tokenizer_test.py drive the tokenizer: reads JSON lines from stdin, each with "text" or
// "ids", and answers each with one JSON line.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/tokenizer.h"

namespace jiboia {
namespace {

nlohmann::json answer(Tokenizer& tokenizer, const nlohmann::json& request) {
  if (request.contains("text")) {
    const auto& text = request["text"].get_ref<const std::string&>();
    return {{"ids", tokenizer.encode(text, request["add_special_tokens"].get<bool>())}};
  }
  const auto ids = request["ids"].get<std::vector<std::int32_t>>();
  const bool skip_special_tokens = request["skip_special_tokens"].get<bool>();
  StreamDecoder stream(tokenizer, skip_special_tokens);
  std::string streamed;
  for (const std::int32_t id : ids) streamed += stream.append(id);
  streamed += stream.finish();
  return {{"text", tokenizer.decode(ids, skip_special_tokens)}, {"streamed", streamed}};
}

}  // namespace
}  // namespace jiboia

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: data_tokenize_tool TOKENIZER_JSON < requests > answers\n";
    return 2;
  }
  jiboia::Tokenizer tokenizer = jiboia::Tokenizer::load(argv[1]);
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << jiboia::answer(tokenizer, nlohmann::json::parse(line)) << '\n';
  }
}
