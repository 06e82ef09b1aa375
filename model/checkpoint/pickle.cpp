#include "model/checkpoint/pickle.h"

#include <algorithm>
#include <array>
#include <deque>
#include <set>
#include <string_view>
#include <unordered_map>

#include <fmt/format.h>

#include "base/error.h"
#include "base/json_file.h"
#include "model/tokenizer/utf8.h"

namespace roundhouse {
namespace {

// Names as in Python's pickletools.
enum Opcode : std::uint8_t {
  kMark = '(',
  kEmptyTuple = ')',
  kStop = '.',
  kPop = '0',
  kBinFloat = 'G',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinUnicode = 'X',
  kEmptyList = ']',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kEmptyDict = '}',
  kProto = 0x80,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kShortBinUnicode = 0x8c,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95
};

constexpr std::array<std::string_view, 10> kStorages = {
    "FloatStorage", "HalfStorage",  "BFloat16Storage", "DoubleStorage", "LongStorage",
    "IntStorage",   "ShortStorage", "CharStorage",     "ByteStorage",   "BoolStorage"};
constexpr std::string_view kRebuildTensor = "torch._utils._rebuild_tensor_v2";
constexpr std::string_view kOrderedDict = "collections.OrderedDict";

// No file has more. A few bytes of a pickle can refer to one string or shape again, so what is copied for every tensor (its
// storage's key, which is a small number, and its shape) has to be short.
constexpr std::size_t kMaxStringBytes = 4096;
constexpr std::size_t kMaxKeyBytes = 64;
constexpr std::size_t kMaxDimensions = 8;

enum class Kind {
  kNone,
  kOther,  // booleans, floats: never looked at
  kInteger,
  kString,
  kTuple,
  kList,
  kDict,
  kGlobal,
  kStorage,  // items: what its persistent id holds
  kTensor    // items: the arguments of _rebuild_tensor_v2
};

// Values refer to each other by number and belong to the machine: a pickle may nest them as deeply as it likes, or in a
// circle, and freeing them takes no recursion.
using Ref = std::uint32_t;
struct Value {
  Kind kind = Kind::kNone;
  std::int64_t integer = 0;
  std::string_view text;   // of strings and globals: part of the pickle, or of a constant
  std::vector<Ref> items;  // of a dict: key, value, key, value, ...
};

class Machine {
 public:
  Machine(std::span<const std::byte> pickle, const std::string& where)
      : pickle_(pickle), where_(where), values_(3) {
    values_[kOtherRef].kind = Kind::kOther;
    values_[kEmptyTupleRef].kind = Kind::kTuple;
  }

  std::vector<PickledTensor> run() {
    for (;;) {
      start_ = at_;
      const auto opcode = static_cast<Opcode>(unsigned_number(1));
      if (opcode == kStop) return state_dict(pop());
      step(opcode);
    }
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw InputError(fmt::format("{}: byte {}: {}", where_, start_, what));
  }

  // The program's text.
  std::string_view take(std::uint64_t bytes) {
    if (bytes > pickle_.size() - at_) fail("the pickle is cut off");
    const std::string_view text(reinterpret_cast<const char*>(pickle_.data()) + at_, bytes);
    at_ += bytes;
    return text;
  }
  std::uint64_t unsigned_number(int bytes) {
    std::uint64_t value = 0;
    int shift = 0;
    for (const char c : take(static_cast<std::uint64_t>(bytes))) {
      value |= std::uint64_t{static_cast<unsigned char>(c)} << shift;
      shift += 8;
    }
    return value;
  }
  // Two's complement.
  std::int64_t signed_number(int bytes) {
    const std::uint64_t value = unsigned_number(bytes);
    if (bytes == 0) return 0;
    const int unused = 64 - 8 * bytes;
    return static_cast<std::int64_t>(value << unused) >> unused;
  }
  std::string_view take_line() {
    const auto* begin = reinterpret_cast<const char*>(pickle_.data()) + at_;
    std::size_t bytes = 0;
    while (take(1)[0] != '\n') ++bytes;
    return {begin, bytes};
  }

  // The stack; nothing below a mark can be reached but through it.
  Value& value(Ref ref) { return values_[ref]; }
  void push(Value made) {
    values_.push_back(std::move(made));
    stack_.push_back(static_cast<Ref>(values_.size() - 1));
  }
  Ref top() const {
    if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) fail("the stack is empty");
    return stack_.back();
  }
  Ref pop() {
    const Ref ref = top();
    stack_.pop_back();
    return ref;
  }
  std::vector<Ref> pop_to_mark() {
    if (marks_.empty()) fail("no mark on the stack");
    const auto begin = stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back());
    std::vector<Ref> items(begin, stack_.end());
    stack_.erase(begin, stack_.end());
    marks_.pop_back();
    return items;
  }
  Value& top_of_kind(Kind kind, const char* what) {
    Value& found = value(top());
    if (found.kind != kind) fail(std::string("not ") + what);
    return found;
  }
  void get(std::uint64_t key) {
    const auto found = memo_.find(key);
    if (found == memo_.end()) fail(fmt::format("nothing was remembered as {}", key));
    stack_.push_back(found->second);
  }

  void push_string(std::string_view text) {
    if (text.size() > kMaxStringBytes) fail(fmt::format("a string of {} bytes", text.size()));
    if (!is_utf8(text)) fail("a string that is not UTF-8");
    push({.kind = Kind::kString, .integer = 0, .text = text, .items = {}});
  }
  void push_integer(std::int64_t number) {
    push({.kind = Kind::kInteger, .integer = number, .text = {}, .items = {}});
  }
  void push_items(Kind kind, std::vector<Ref> items) {
    push({.kind = kind, .integer = 0, .text = {}, .items = std::move(items)});
  }
  void push_tuple(int size) {
    std::vector<Ref> items(static_cast<std::size_t>(size));
    for (auto item = items.rbegin(); item != items.rend(); ++item) *item = pop();
    push_items(Kind::kTuple, std::move(items));
  }
  void push_global(std::string_view module, std::string_view name) {
    const std::string whole = std::string(module) + "." + std::string(name);
    std::string_view known;
    if (module == "torch") {
      const auto* storage = std::ranges::find(kStorages, name);
      if (storage != kStorages.end()) known = *storage;
    }
    for (const std::string_view function : {kRebuildTensor, kOrderedDict}) {
      if (whole == function) known = function;
    }
    if (known.empty()) {
      fail("the pickle asks for " + in_quotes(whole) +
           ", which no checkpoint needs: not loaded (only tensors in dictionaries are)");
    }
    push({.kind = Kind::kGlobal, .integer = 0, .text = known, .items = {}});
  }
  void set_items(Value& dict, const std::vector<Ref>& items) {
    if (items.size() % 2 != 0) fail("a key without a value");
    dict.items.insert(dict.items.end(), items.begin(), items.end());
  }

  // ("storage", type, key, device, elements)
  void make_storage() {
    const Ref tuple = pop();
    if (value(tuple).kind != Kind::kTuple) fail("not the persistent id of a storage");
    std::vector<Ref> id = value(tuple).items;
    const bool ok = id.size() == 5 && is_string(id[0]) && value(id[0]).text == "storage" &&
                    value(id[1]).kind == Kind::kGlobal && value(id[1]).text.ends_with("Storage") &&
                    is_string(id[2]) && value(id[2]).text.size() <= kMaxKeyBytes &&
                    value(id[4]).kind == Kind::kInteger;
    if (!ok) fail("not the persistent id of a storage");
    push_items(Kind::kStorage, std::move(id));
  }
  void call() {
    const Ref arguments = pop(), function = pop();
    if (value(function).kind != Kind::kGlobal || value(arguments).kind != Kind::kTuple) {
      fail("not a call of a known function");
    }
    std::vector<Ref> items = value(arguments).items;
    if (value(function).text == kOrderedDict && items.empty()) {
      push_items(Kind::kDict, {});
      return;
    }
    // (storage, offset, size, stride, requires_grad, hooks[, metadata])
    const bool ok =
        value(function).text == kRebuildTensor && (items.size() == 6 || items.size() == 7) &&
        value(items[0]).kind == Kind::kStorage && value(items[1]).kind == Kind::kInteger &&
        is_shape(items[2]) && is_shape(items[3]);
    if (!ok) fail("a call of " + in_quotes(value(function).text) + " with unknown arguments");
    push_items(Kind::kTensor, std::move(items));
  }
  bool is_string(Ref ref) { return value(ref).kind == Kind::kString; }
  bool is_shape(Ref ref) {
    return value(ref).kind == Kind::kTuple && value(ref).items.size() <= kMaxDimensions &&
           std::ranges::all_of(value(ref).items,
                               [&](Ref item) { return value(item).kind == Kind::kInteger; });
  }
  Shape shape_of(Ref ref) {
    Shape shape;
    for (const Ref item : value(ref).items) shape.push_back(value(item).integer);
    return shape;
  }

  void step(Opcode opcode) {
    switch (opcode) {
      case kProto:
        if (const auto version = unsigned_number(1); version < 2 || version > 4) {
          fail(fmt::format("pickle protocol {} is not supported", version));
        }
        return;
      case kFrame:
        (void)unsigned_number(8);
        return;
      case kMark:
        marks_.push_back(stack_.size());
        return;
      case kPop:
        (void)pop();
        return;
      case kNone:
        return stack_.push_back(kNoneRef);
      case kNewTrue:
      case kNewFalse:
        return stack_.push_back(kOtherRef);
      case kBinFloat:
        (void)take(8);
        return stack_.push_back(kOtherRef);
      case kBinInt:
        return push_integer(signed_number(4));
      case kBinInt1:
        return push_integer(static_cast<std::int64_t>(unsigned_number(1)));
      case kBinInt2:
        return push_integer(static_cast<std::int64_t>(unsigned_number(2)));
      case kLong1: {
        const auto bytes = unsigned_number(1);
        if (bytes > 8) fail("an integer of more than 64 bits");
        return push_integer(signed_number(static_cast<int>(bytes)));
      }
      case kBinUnicode:
        return push_string(take(unsigned_number(4)));
      case kShortBinUnicode:
        return push_string(take(unsigned_number(1)));
      case kEmptyTuple:
        return stack_.push_back(kEmptyTupleRef);
      case kEmptyList:
        return push_items(Kind::kList, {});
      case kEmptyDict:
        return push_items(Kind::kDict, {});
      case kTuple1:
      case kTuple2:
      case kTuple3:
        return push_tuple(opcode - kTuple1 + 1);
      case kTuple:
        return push_items(Kind::kTuple, pop_to_mark());
      case kAppend: {
        const Ref item = pop();
        top_of_kind(Kind::kList, "a list").items.push_back(item);
        return;
      }
      case kAppends: {
        const std::vector<Ref> items = pop_to_mark();
        Value& list = top_of_kind(Kind::kList, "a list");
        list.items.insert(list.items.end(), items.begin(), items.end());
        return;
      }
      case kSetItem: {
        const Ref item = pop(), key = pop();
        return set_items(top_of_kind(Kind::kDict, "a dictionary"), {key, item});
      }
      case kSetItems: {
        const std::vector<Ref> items = pop_to_mark();
        return set_items(top_of_kind(Kind::kDict, "a dictionary"), items);
      }
      case kBuild:  // attributes of the dictionary, such as the versions of modules
        if (value(pop()).kind != Kind::kDict) fail("not attributes");
        (void)top_of_kind(Kind::kDict, "a dictionary");
        return;
      case kGlobal: {
        const std::string_view module = take_line();
        return push_global(module, take_line());
      }
      case kStackGlobal: {
        const Ref name = pop(), module = pop();
        if (!is_string(name) || !is_string(module)) fail("not a name");
        return push_global(value(module).text, value(name).text);
      }
      case kBinPersId:
        return make_storage();
      case kReduce:
        return call();
      case kBinPut:
        memo_[unsigned_number(1)] = top();
        return;
      case kLongBinPut:
        memo_[unsigned_number(4)] = top();
        return;
      case kMemoize: {
        const std::size_t key = memo_.size();
        memo_[key] = top();
        return;
      }
      case kBinGet:
        return get(unsigned_number(1));
      case kLongBinGet:
        return get(unsigned_number(4));
      case kStop:
        break;
    }
    fail(fmt::format("opcode 0x{:02x} is not known", static_cast<unsigned>(opcode)));
  }

  std::vector<PickledTensor> state_dict(Ref result) {
    if (value(result).kind != Kind::kDict) fail("not a dictionary of tensors");
    const std::vector<Ref>& items = value(result).items;
    std::vector<PickledTensor> tensors;
    std::set<std::string_view> names;
    for (std::size_t i = 0; i < items.size(); i += 2) {
      if (!is_string(items[i])) fail("a key that is not a string");
      const std::string_view name = value(items[i]).text;
      if (!names.insert(name).second) fail("tensor " + in_quotes(name) + " stands twice");
      if (value(items[i + 1]).kind != Kind::kTensor) fail(in_quotes(name) + " is not a tensor");
      const std::vector<Ref>& arguments = value(items[i + 1]).items;
      const std::vector<Ref>& storage = value(arguments[0]).items;
      tensors.push_back({.name = std::string(name),
                         .storage_type = std::string(value(storage[1]).text),
                         .storage_key = std::string(value(storage[2]).text),
                         .storage_elements = value(storage[4]).integer,
                         .offset = value(arguments[1]).integer,
                         .shape = shape_of(arguments[2]),
                         .strides = shape_of(arguments[3])});
    }
    return tensors;
  }

  std::span<const std::byte> pickle_;
  const std::string& where_;
  std::size_t at_ = 0;
  std::size_t start_ = 0;  // of the opcode at work
  // One each of what nothing changes is enough.
  static constexpr Ref kNoneRef = 0, kOtherRef = 1, kEmptyTupleRef = 2;
  std::deque<Value> values_;
  std::vector<Ref> stack_;
  std::vector<std::size_t> marks_;
  std::unordered_map<std::uint64_t, Ref> memo_;
};

}  // namespace

std::vector<PickledTensor> read_state_dict(std::span<const std::byte> pickle,
                                           const std::string& where) {
  return Machine(pickle, where).run();
}

}  // namespace roundhouse
