#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace mirabelle {

/// Who can mend it; the value is the exit status of the executables.
enum class ErrorKind {
  kOther = 1,  ///< the machine, a library, or a defect of ours
  kUsage = 2,  ///< arguments or configuration
  kData = 3,   ///< the contents of an input file
};

/// The exit status of a program that was stopped before it was done, and goes on when it is started
/// again: EX_TEMPFAIL of sysexits.h.
inline constexpr int kExitStopped = 75;

/// The only exception that Mirabelle throws. `what()` is one line: what was wanted, what came,
/// where.
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message)
      : std::runtime_error(on_one_line(message)), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  /// A file's text may be part of the message: its control characters become "?".
  static std::string on_one_line(std::string message) {
    for (char& c : message) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
    }
    return message;
  }

  ErrorKind kind_;
};

/// Throws an Error whose message is all `parts` written one after the other.
template <typename... Parts>
[[noreturn]] void throw_error(ErrorKind kind, const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(kind, message.str());
}

}  // namespace mirabelle

/// Always on. The parts after the condition say what was wanted and what came.
#define MIRABELLE_CHECK_KIND(kind, condition, ...)                 \
  do {                                                             \
    if (!(condition)) ::mirabelle::throw_error(kind, __VA_ARGS__); \
  } while (false)
#define MIRABELLE_CHECK(condition, ...) \
  MIRABELLE_CHECK_KIND(::mirabelle::ErrorKind::kOther, condition, __VA_ARGS__)
#define MIRABELLE_CHECK_USAGE(condition, ...) \
  MIRABELLE_CHECK_KIND(::mirabelle::ErrorKind::kUsage, condition, __VA_ARGS__)
#define MIRABELLE_CHECK_DATA(condition, ...) \
  MIRABELLE_CHECK_KIND(::mirabelle::ErrorKind::kData, condition, __VA_ARGS__)
