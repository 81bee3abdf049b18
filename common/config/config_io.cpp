// SPDX-License-Identifier: MIT
#include "common/config/config_io.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <sstream>
#include <type_traits>

#include "common/error.h"

namespace prulong {
namespace {

using Kind = ConfigNode::Kind;
constexpr size_t kMaxBytes = size_t{1} << 20;

[[noreturn]] void fail(const std::string& where, const std::string& what) { throw ConfigError(where + ": " + what); }

std::string describe(const ConfigNode& node) {
  switch (node.kind) {
    case Kind::kNothing:
      return "nothing";
    case Kind::kList:
      return "a list";
    case Kind::kSection:
      return "a section";
    case Kind::kScalar:
      break;
  }
  return (node.quoted ? "the quoted text " : "") + show_text(node.scalar);
}

// --- YAML to ConfigNode ----------------------------------------------------------------------------------------------

class TreeBuilder : public YAML::EventHandler {
 public:
  /// @param place  the name of the text; `numbered` adds the line.
  TreeBuilder(std::string place, bool numbered) : place_(std::move(place)), numbered_(numbered) {}

  ConfigNode root;

  std::string where(const YAML::Mark& mark) const {
    return numbered_ && mark.line >= 0 ? place_ + ":" + std::to_string(mark.line + 1) : place_;
  }
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    finish(make(Kind::kNothing, mark, "", anchor));
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(where(mark), "aliases (*name) are not supported; write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    ConfigNode node = make(Kind::kScalar, mark, tag, anchor);
    node.scalar = value;
    node.quoted = tag == "!";
    if (!open_.empty() && open_.back().node.kind == Kind::kSection && !open_.back().key) {
      take_key(std::move(node));
    } else {
      finish(std::move(node));
    }
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    begin(make(Kind::kList, mark, tag, anchor));
  }
  void OnSequenceEnd() override { end(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    begin(make(Kind::kSection, mark, tag, anchor));
  }
  void OnMapEnd() override { end(); }

 private:
  struct Open {
    ConfigNode node;
    std::optional<std::string> key;  ///< of the value to come
    std::string key_where;
  };

  ConfigNode make(Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) const {
    if (anchor != 0) fail(where(mark), "anchors (&name) are not supported; write the value out");
    // yaml-cpp gives "?" to what has no tag and "!" to quoted scalars.
    if (!tag.empty() && tag != "?" && tag != "!")
      fail(where(mark), "YAML tags are not supported; write the value without " + show_text(tag));
    ConfigNode node;
    node.kind = kind;
    node.where = where(mark);
    return node;
  }
  void take_key(ConfigNode name) {
    Open& parent = open_.back();
    if (const ConfigNode* first = parent.node.find(name.scalar)) {
      fail(name.where, "duplicate key " + show_text(name.scalar) + ", already given at " + first->where + "; keep one");
    }
    parent.key = name.scalar;
    parent.key_where = name.where;
  }
  void begin(ConfigNode node) { open_.push_back({std::move(node), std::nullopt, ""}); }
  void end() {
    ConfigNode node = std::move(open_.back().node);
    open_.pop_back();
    finish(std::move(node));
  }
  void finish(ConfigNode node) {
    if (open_.empty()) {
      root = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == Kind::kList) {
      parent.node.items.push_back(std::move(node));
    } else if (parent.key) {
      node.where = parent.key_where;  // a block value may start lines below its key
      parent.node.members.emplace_back(std::move(*parent.key), std::move(node));
      parent.key.reset();
    } else {
      fail(node.where, "a key must be a name, found " + describe(node));
    }
  }

  std::string place_;
  bool numbered_;
  std::vector<Open> open_;
};

ConfigNode parse_yaml(const std::string& text, const std::string& place, bool numbered) {
  if (text.find('\0') != std::string::npos) fail(place, "expected a text file, found a zero byte; name a YAML file");
  std::istringstream lines(text);
  int64_t number = 0;
  for (std::string line; std::getline(lines, line);) {
    ++number;
    const size_t content = std::min(line.find_first_not_of(" \t\r"), line.size());
    if (content < line.size() && line[content] != '#' && line.substr(0, content).find('\t') != std::string::npos) {
      fail(numbered ? place + ":" + std::to_string(number) : place, "a tab in the indentation; use spaces");
    }
  }
  TreeBuilder builder(place, numbered);
  try {
    // Without white space at the end: behind it, yaml-cpp takes the end of the text for the end of a quoted value.
    std::istringstream stream(text.substr(0, text.find_last_not_of(" \t\r\n") + 1));
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    TreeBuilder rest(place, numbered);
    if (parser.HandleNextDocument(rest)) fail(place, "more than one YAML document; keep one");
  } catch (const YAML::Exception& error) {
    fail(builder.where(error.mark), "not valid YAML: " + error.msg + "; mend this line, or the one before it");
  }
  return std::move(builder.root);
}

// --- ConfigNode to configuration -------------------------------------------------------------------------------------

struct UnknownKey {
  std::string where;
  std::string path;
  std::string section, name;
};

class Reader : public ConfigVisitor {
 public:
  Reader(const ConfigNode& root, std::string name) : name_(std::move(name)) { frames_.push_back({&root, "", {}}); }

  /// To be called once after the visit. What is missing comes last: it may only be misspelled.
  void finish() const {
    refuse_unknown(frames_.back());
    if (!missing_.empty()) throw ConfigError(missing_);
  }

  void boolean(bool& value, const Key& key) override {
    const ConfigNode* node = take(key);
    if (node == nullptr) return;
    const bool yes = node->scalar == "true";
    if (node->kind != Kind::kScalar || node->quoted || (!yes && node->scalar != "false")) {
      refuse(*node, key, "true or false");
    }
    value = yes;
  }
  void integer(int64_t& value, const Key& key, int64_t min, int64_t max) override {
    const ConfigNode* node = take(key);
    if (node == nullptr) return;
    const auto parsed = parse_number<int64_t>(*node);
    if (!parsed || *parsed < min || *parsed > max) {
      refuse(*node, key, "an integer from " + std::to_string(min) + " to " + std::to_string(max));
    }
    value = *parsed;
  }
  void integer_or(int64_t& value, const Key& key, int64_t min, int64_t max, std::string_view zero) override {
    const ConfigNode* node = take(key);
    if (node == nullptr) return;
    const auto parsed = node->scalar == zero ? std::optional<int64_t>(0) : parse_number<int64_t>(*node);
    if (node->kind != Kind::kScalar || !parsed || (*parsed < min && node->scalar != zero) || *parsed > max) {
      refuse(*node, key,
             "an integer from " + std::to_string(min) + " to " + std::to_string(max) + " or " + std::string(zero));
    }
    value = *parsed;
  }
  void number(double& value, const Key& key, const Interval& allowed) override {
    const ConfigNode* node = take(key);
    if (node == nullptr) return;
    const auto parsed = parse_number<double>(*node);
    if (!parsed || !allowed.contains(*parsed)) refuse(*node, key, allowed.text());
    value = *parsed;
  }
  void text(std::string& value, const Key& key, TextRule rule) override {
    if (const ConfigNode* node = take(key)) {
      if (node->kind != Kind::kScalar) refuse(*node, key, "a text");
      value = node->scalar;
      if (value.empty() && rule == TextRule::kRequired) refuse(*node, key, "a text that is not empty");
    } else if (value.empty() && rule == TextRule::kRequired && missing_.empty()) {
      const ConfigNode* section = frames_.back().node;
      missing_ = (section != nullptr && !section->where.empty() ? section->where : name_) + ": " + path(key) +
                 " is missing, but required (" + std::string(key.help) + ")";
    }
  }

 protected:
  size_t choose(size_t value, const Key& key, std::span<const std::string_view> names) override {
    const ConfigNode* node = take(key);
    return node != nullptr ? index_of(*node, key, names) : value;
  }
  void choose_several(std::vector<size_t>& values, const Key& key, std::span<const std::string_view> names) override {
    const ConfigNode* node = take(key);
    if (node == nullptr) return;
    if (node->kind != Kind::kList || node->items.empty()) refuse(*node, key, "a list of " + show_names(names));
    values.clear();
    for (const ConfigNode& item : node->items) {
      values.push_back(index_of(item, key, names));
      if (std::count(values.begin(), values.end(), values.back()) > 1) refuse(item, key, "each name once");
    }
  }
  void begin_section(const Key& key) override {
    const ConfigNode* node = take(key);
    if (node != nullptr && node->kind != Kind::kSection && node->kind != Kind::kNothing) {
      refuse(*node, key, "a section (indented key: value lines)");
    }
    frames_.push_back({node, path(key) + ".", {}});
  }
  void end_section() override {
    refuse_unknown(frames_.back());
    frames_.pop_back();
  }
  size_t begin_list(const Key& key, size_t size) override {
    const ConfigNode* node = take(key);
    if (node != nullptr && node->kind != Kind::kList) refuse(*node, key, "a list (lines that start with -)");
    frames_.push_back({node, path(key) + ".", {}});
    return node != nullptr ? node->items.size() : size;
  }
  void begin_item(size_t index) override {
    const Frame& list = frames_.back();
    const ConfigNode* node = list.node != nullptr ? &list.node->items[index] : nullptr;
    const std::string item = list.prefix + std::to_string(index);
    if (node != nullptr && node->kind != Kind::kSection) {
      fail(node->where, item + ": expected a section (key: value lines), found " + describe(*node));
    }
    frames_.push_back({node, item + ".", {}});
  }
  void end_item() override { end_section(); }
  void end_list() override { frames_.pop_back(); }

 private:
  struct Frame {
    const ConfigNode* node;  ///< null when the document does not give it
    std::string prefix;
    std::vector<std::string_view> known;
  };

  std::string path(const Key& key) const { return frames_.back().prefix + std::string(key.name); }

  const ConfigNode* take(const Key& key) {
    Frame& frame = frames_.back();
    frame.known.push_back(key.name);
    return frame.node != nullptr ? frame.node->find(key.name) : nullptr;
  }
  [[noreturn]] void refuse(const ConfigNode& node, const Key& key, const std::string& expected) const {
    fail(node.where, path(key) + ": expected " + expected + ", found " + describe(node));
  }
  static void refuse_unknown(const Frame& frame) {
    if (frame.node == nullptr) return;
    for (const auto& [name, node] : frame.node->members) {
      if (std::find(frame.known.begin(), frame.known.end(), name) == frame.known.end()) {
        throw UnknownKey{node.where, frame.prefix + name, frame.prefix, name};
      }
    }
  }
  template <class T>
  static std::optional<T> parse_number(const ConfigNode& node) {
    T value{};
    const char* begin = node.scalar.data();
    const char* end = begin + node.scalar.size();
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (node.kind != Kind::kScalar || node.quoted || stop != end) return std::nullopt;
    if constexpr (std::is_floating_point_v<T>) {  // 1e-400 is 0, 1e400 is infinite
      if (error == std::errc::result_out_of_range) return std::strtod(node.scalar.c_str(), nullptr);
    }
    if (error != std::errc{}) return std::nullopt;
    return value;
  }
  size_t index_of(const ConfigNode& node, const Key& key, std::span<const std::string_view> names) const {
    const auto found = std::find(names.begin(), names.end(), node.scalar);
    if (node.kind != Kind::kScalar || found == names.end()) refuse(node, key, show_names(names));
    return static_cast<size_t>(found - names.begin());
  }

  std::string name_;
  std::vector<Frame> frames_;
  std::string missing_;  ///< the first required key that is not given, as a message
};

}  // namespace

const ConfigNode* ConfigNode::find(std::string_view name) const {
  for (const auto& [key, node] : members) {
    if (key == name) return &node;
  }
  return nullptr;
}

ConfigDocument ConfigDocument::load(const std::filesystem::path& path) {
  const std::string name = path.string();
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    fail(name, "expected a YAML file, found a folder; name the file in it");
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(name, std::string("cannot open: ") + std::strerror(errno) + "; check the path");
  std::string text(kMaxBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(file.gcount()));
  if (text.size() > kMaxBytes) fail(name, "larger than 1 MiB: not a configuration; check the path");
  return parse(text, name);
}

ConfigDocument ConfigDocument::parse(const std::string& text, const std::string& name) {
  ConfigDocument document;
  document.name_ = name;
  document.root_ = parse_yaml(text, name, true);
  if (document.root_.kind == Kind::kNothing) fail(name, "expected key: value lines, found nothing; check the path");
  if (document.root_.kind != Kind::kSection) {
    fail(document.root_.where, "expected key: value lines, found " + describe(document.root_));
  }
  return document;
}

void ConfigDocument::set(const std::string& assignment) {
  const std::string place = "command line";
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) fail(place, "expected key=value, found " + show_text(assignment));
  const std::string path = assignment.substr(0, equals);
  const std::string value = assignment.substr(equals + 1);

  ConfigNode* node = &root_;
  std::string done;
  std::istringstream parts(path + ".");
  for (std::string part; std::getline(parts, part, '.');) {
    if (part.empty()) fail(place, "expected a key like train.steps, found " + show_text(path));
    size_t index = 0;
    const auto [stop, error] = std::from_chars(part.data(), part.data() + part.size(), index);
    const bool is_index = error == std::errc{} && stop == part.data() + part.size();
    if (node->kind == Kind::kNothing) {
      node->kind = is_index ? Kind::kList : Kind::kSection;
    }
    if (node->kind == Kind::kScalar)
      fail(place, show_text(path) + ": " + done + " is a value, expected a section; set " + done + " itself");
    if (node->kind == Kind::kList) {
      if (!is_index || index > node->items.size()) {
        fail(place, show_text(path) + ": " + done + " is a list of " + std::to_string(node->items.size()) +
                        "; expected a number up to that, found " + show_text(part));
      }
      if (index == node->items.size()) node->items.push_back({.where = place});
      node = &node->items[index];
    } else {
      auto& members = node->members;
      const auto found = std::find_if(members.begin(), members.end(), [&](const auto& m) { return m.first == part; });
      node = found != members.end() ? &found->second : &members.emplace_back(part, ConfigNode{.where = place}).second;
    }
    done += (done.empty() ? "" : ".") + part;
  }
  if (!value.empty() && (value[0] == '[' || value[0] == '{')) {
    *node = parse_yaml(value, place, false);
  } else {
    *node = ConfigNode{.kind = Kind::kScalar, .where = place, .scalar = value};
  }
}

void ConfigDocument::read(const VisitConfig& visit) const {
  Reader reader(root_, name_);
  try {
    visit(reader);
    reader.finish();
  } catch (const UnknownKey& unknown) {
    if (const size_t dot = unknown.name.rfind('.'); dot != std::string::npos) {
      fail(unknown.where, "key " + show_text(unknown.path) +
                              " has dots, which stand for sections on the command line only; here write " +
                              show_text(unknown.name.substr(dot + 1)) + " into the section " +
                              show_text(unknown.section + unknown.name.substr(0, dot)));
    }
    fail(unknown.where, explain_unknown_key(unknown.path, visit));
  }
}

std::string ConfigDocument::where(std::string_view path) const {
  const ConfigNode* node = &root_;
  std::istringstream parts{std::string(path)};
  for (std::string part; std::getline(parts, part, '.');) {
    const ConfigNode* next = node->find(part);
    if (next == nullptr && node->kind == Kind::kList) {
      size_t index = 0;
      std::from_chars(part.data(), part.data() + part.size(), index);
      if (index < node->items.size()) next = &node->items[index];
    }
    if (next == nullptr) break;
    node = next;
  }
  return node == &root_ ? name_ : node->where;
}

}  // namespace prulong
