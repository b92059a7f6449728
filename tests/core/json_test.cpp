#include "mirabelle/core/json.h"

#include <gtest/gtest.h>

#include <cstdint>

#include "support/errors.h"

namespace mirabelle {
namespace {

using nlohmann::json;
using testing::expect_error;

void expect_refused(const std::string& text, const std::string& message) {
  expect_error(ErrorKind::kData, "f.json: " + message, [&] { parse_json(text, "f.json"); });
}

TEST(JsonTest, ReadsWhatJsonIs) {
  const json value = parse_json(R"( {"a": [1, -2, 2.5, true, null], "b": {"a": "\u00e9é"}} )", "f");
  EXPECT_EQ(value, json({{"a", {1, -2, 2.5, true, nullptr}}, {"b", {{"a", "éé"}}}}));
  EXPECT_EQ(parse_json("7", "f"), 7);
}

TEST(JsonTest, NamesThePlaceOfASyntaxError) {
  expect_refused("", "malformed JSON at line 1, column 1: ");
  expect_refused("{\"a\": 1,\n \"b\" 2}", "malformed JSON at line 2, column 6: ");
  for (const char* text : {"{} {}", "[1,]", "{'a': 1}", "nan", "01", "[1", "{\"a\": 1} // note"}) {
    expect_refused(text, "malformed JSON at line 1, column ");
  }
  expect_refused("[1e999]", "malformed JSON: a number too large for a double");
}

TEST(JsonTest, RefusesBadUtf8) {
  for (const char* text : {"\"\xff\"", "\"\xc3\"", "\"\xed\xa0\x80\"", "{\"\xc0\xaf\": 1}"}) {
    expect_refused(text, "malformed JSON at line 1, column ");
  }
}

TEST(JsonTest, RefusesAKeyGivenTwice) {
  expect_refused(R"({"a": 1, "b": 2, "a": 3})", "the key \"a\" is given twice");
  expect_refused(R"([{"b": {"x": 1, "\u0078": 2}}])", "the key \"x\" is given twice");
  EXPECT_EQ(parse_json(R"({"a": {"a": 1}, "b": {"a": 2}})", "f")["b"]["a"], 2);
}

TEST(JsonTest, RefusesDeepNesting) {
  const auto nested = [](size_t depth) {
    return std::string(depth, '[') + std::string(depth, ']');
  };
  EXPECT_TRUE(parse_json(nested(64), "f").is_array());
  expect_refused(nested(65), "JSON nested deeper than 64");
  expect_refused(std::string(1 << 20, '['), "JSON nested deeper than 64");
  std::string objects;
  for (int i = 0; i < 65; ++i) objects += "{\"a\":";
  expect_refused(objects, "JSON nested deeper than 64");
}

TEST(JsonTest, ValuesAreOfTheTypeThatIsWanted) {
  const json object = {{"n", 7},         {"x", 2.5},         {"text", "a"},    {"flag", true},
                       {"list", {1, 2}}, {"max", INT64_MAX}, {"none", nullptr}};
  EXPECT_EQ(json_field<int64_t>(object, "n", "f"), 7);
  EXPECT_EQ(json_field<int64_t>(object, "max", "f"), INT64_MAX);
  EXPECT_EQ(json_field<double>(object, "n", "f"), 7.0);
  EXPECT_EQ(json_field<double>(object, "x", "f"), 2.5);
  EXPECT_EQ(json_field<std::string>(object, "text", "f"), "a");
  EXPECT_TRUE(json_field<bool>(object, "flag", "f"));
  EXPECT_EQ(json_field<std::vector<int64_t>>(object, "list", "f"), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(json_field<std::vector<double>>(object, "list", "f"), (std::vector<double>{1, 2}));
  EXPECT_TRUE(json_field<json>(object, "none", "f").is_null());
  EXPECT_EQ(json_field_or<int64_t>(object, "n", "f", 3), 7);
  EXPECT_EQ(json_field_or<int64_t>(object, "absent", "f", 3), 3);
}

TEST(JsonTest, AWrongFieldIsNamed) {
  const auto refuses = [](const std::string& message, auto call) {
    expect_error(ErrorKind::kData, message, call);
  };
  const json object = {{"x", 2.5}, {"big", 9223372036854775808u}, {"mixed", {1, "a"}}, {"t", true}};
  refuses("f: \"n\" is missing", [&] { json_field<int64_t>(object, "n", "f"); });
  refuses("f: \"x\" is 2.5, wanted an integer", [&] { json_field<int64_t>(object, "x", "f"); });
  refuses("f: \"big\" is 9223372036854775808", [&] { json_field<int64_t>(object, "big", "f"); });
  refuses("f: \"t\" is true, wanted a number", [&] { json_field<double>(object, "t", "f"); });
  refuses("f: \"x\" is 2.5, wanted a list",
          [&] { json_field<std::vector<json>>(object, "x", "f"); });
  refuses("f: \"mixed\" is [1,\"a\"], wanted a list of integers",
          [&] { json_field<std::vector<int64_t>>(object, "mixed", "f"); });
  refuses("f: is [], wanted an object with \"n\"",
          [&] { json_field<int64_t>(json::array(), "n", "f"); });
  refuses("f: is [], wanted", [&] { json_field_or<int64_t>(json::array(), "n", "f", 0); });
  refuses("f: \"x\" is 2.5", [&] { json_field_or<std::string>(object, "x", "f", ""); });
}

TEST(ErrorTest, AMessageIsOneLineWhateverTheFileSays) {
  EXPECT_STREQ(Error(ErrorKind::kData, "a\nb\t\x1b[2Jc é").what(), "a?b??[2Jc é");
}

TEST(JsonTest, ShowsLongValuesShortened) {
  EXPECT_EQ(shown(json{{"a", {1, 2}}}), "{\"a\":[1,2]}");
  EXPECT_EQ(shown("a\nb"), "\"a\\nb\"");
  const std::string text = shown(std::string(98, 'x') + "é" + std::string(1000, 'x'));
  EXPECT_EQ(text, '"' + std::string(98, 'x') + "...");  // the é would be cut in two
}

}  // namespace
}  // namespace mirabelle
