#pragma once

#include <charconv>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace mirabelle {

/// Reads a text file line by line through one buffer, which grows to the longest line.
class LineReader {
 public:
  /// Throws a kData Error if the file cannot be opened. Skips a UTF-8 byte-order mark.
  explicit LineReader(std::filesystem::path path);

  /// The next line without its end ("\n" or "\r\n"); valid until the next call.
  bool next(std::string_view& line);
  int64_t line_number() const { return line_number_; }  ///< of the last line, from 1
  const std::filesystem::path& path() const { return path_; }
  std::string where() const;     ///< "file:line"
  double fraction_read() const;  ///< the part of the file's bytes that was handed out

 private:
  bool refill();

  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::filesystem::path path_;
  std::unique_ptr<std::FILE, Close> file_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // what of the buffer is not yet handed out
  bool at_end_ = false;
  int64_t line_number_ = 0;
  int64_t bytes_read_ = 0, file_bytes_ = 0;
};

/// Takes the next word (between blanks and tabs) off the front of `text`; empty at the end.
inline std::string_view take_word(std::string_view& text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at != end && (*at == ' ' || *at == '\t')) ++at;
  const char* const begin = at;
  while (at != end && *at != ' ' && *at != '\t') ++at;
  text = {at, static_cast<size_t>(end - at)};
  return {begin, static_cast<size_t>(at - begin)};
}

/// Whether the whole of `text` is a number that T can hold.
template <typename T>
bool parse_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace mirabelle
