// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/config/config_visitor.h"

namespace prulong {

/// A parsed value that remembers where it stood.
struct ConfigNode {
  enum class Kind { kNothing, kScalar, kList, kSection };
  Kind kind = Kind::kNothing;
  std::string where{};                                        ///< "train.yaml:12" or "command line"
  std::string scalar{};                                       ///< kScalar
  bool quoted = false;                                        ///< kScalar: a text even if it looks like a number
  std::vector<ConfigNode> items{};                            ///< kList
  std::vector<std::pair<std::string, ConfigNode>> members{};  ///< kSection, in order, names distinct

  const ConfigNode* find(std::string_view name) const;
};

/// A YAML file, or text, with changes from the command line; not yet held against any configuration struct. YAML here
/// is one document of sections, lists and scalars: no anchors, aliases, tags, or tabs as indentation.
class ConfigDocument {
 public:
  /// @throws ConfigError naming file and line.
  static ConfigDocument load(const std::filesystem::path& path);
  /// @param name  what messages call the text.
  static ConfigDocument parse(const std::string& text, const std::string& name);

  /// Applies "key.path=value". A number in the path selects an item of a list, one past the last adds one. A value that
  /// starts with [ or { is YAML, any other is taken as it stands.
  /// @throws ConfigError.
  void set(const std::string& assignment);

  /// Writes every key that the document gives into the visited configuration and leaves the others as they are.
  /// @throws ConfigError naming place, key, what was found and what is allowed; for unknown keys the nearest known one.
  void read(const VisitConfig& visit) const;

  /// Where a key was given, else the name of the document. @param path  "sparsity.end", "data.train.0.type".
  std::string where(std::string_view path) const;

 private:
  std::string name_;
  ConfigNode root_;
};

}  // namespace prulong
