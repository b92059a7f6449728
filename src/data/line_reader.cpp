#include "line_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "mirabelle/core/error.h"

namespace mirabelle {

constexpr size_t kBufferBytes = 1 << 20;

LineReader::LineReader(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code error;
  MIRABELLE_CHECK_DATA(!std::filesystem::is_directory(path_, error), path_.string(),
                       ": is a folder, wanted a file");
  file_.reset(std::fopen(path_.c_str(), "rb"));
  MIRABELLE_CHECK_DATA(file_, path_.string(), ": cannot read: ", std::strerror(errno));
  std::setvbuf(file_.get(), nullptr, _IONBF, 0);  // we read in large pieces ourselves
  const auto size = std::filesystem::file_size(path_, error);
  file_bytes_ = error ? 0 : static_cast<int64_t>(size);
  // A small file is read at once, and one byte more, so that its end is seen without growing.
  const auto whole = static_cast<size_t>(file_bytes_) + 1;
  buffer_.resize(file_bytes_ > 0 ? std::min(whole, kBufferBytes) : kBufferBytes);
  refill();
  if (std::string_view(buffer_.data(), end_).starts_with("\xEF\xBB\xBF")) begin_ = 3;
}

bool LineReader::refill() {
  if (at_end_) return false;
  if (begin_ > 0) std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  if (end_ == buffer_.size()) buffer_.resize(2 * buffer_.size());
  const size_t count = std::fread(buffer_.data() + end_, 1, buffer_.size() - end_, file_.get());
  MIRABELLE_CHECK_DATA(!std::ferror(file_.get()), path_.string(),
                       ": cannot read: ", std::strerror(errno));
  end_ += count;
  bytes_read_ += static_cast<int64_t>(count);
  at_end_ = count == 0;
  return !at_end_;
}

bool LineReader::next(std::string_view& line) {
  size_t searched = 0;
  const char* newline = nullptr;
  while (!(newline = static_cast<const char*>(
               std::memchr(buffer_.data() + begin_ + searched, '\n', end_ - begin_ - searched)))) {
    searched = end_ - begin_;
    if (!refill()) break;
  }
  if (!newline && begin_ == end_) return false;
  const char* const first = buffer_.data() + begin_;
  size_t length = newline ? static_cast<size_t>(newline - first) : end_ - begin_;
  begin_ += length + (newline ? 1 : 0);
  if (length > 0 && first[length - 1] == '\r') --length;
  line = {first, length};
  ++line_number_;
  return true;
}

std::string LineReader::where() const {
  return path_.string() + ":" + std::to_string(line_number_);
}

double LineReader::fraction_read() const {
  if (file_bytes_ == 0) return 1.0;
  const auto waiting = static_cast<int64_t>(end_ - begin_);
  return static_cast<double>(bytes_read_ - waiting) / static_cast<double>(file_bytes_);
}

}  // namespace mirabelle
