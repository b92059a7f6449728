#pragma once

#include <gtest/gtest.h>

#include <string>

#include "mirabelle/core/error.h"

namespace mirabelle::testing {

/// Runs `call` and expects an Error of this kind whose message contains `part`.
template <typename Call>
void expect_error(ErrorKind kind, const std::string& part, Call call) {
  try {
    call();
    ADD_FAILURE() << "no error; expected one that says \"" << part << "\"";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

/// The same for the operands of kernels.
template <typename Call>
void expect_error(const std::string& part, Call call) {
  expect_error(ErrorKind::kOther, part, call);
}

}  // namespace mirabelle::testing
