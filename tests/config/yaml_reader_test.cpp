#include "mirabelle/config/yaml_reader.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <random>

#include "mirabelle/core/error.h"
#include "mirabelle/core/files.h"

namespace mirabelle {
namespace {

struct Orchard {
  std::string name = "mirabelle";
  int64_t num_trees = 12;
  double sweetness = 0.5;
  bool organic = true;
  std::vector<int64_t> rows = {4, 8};
  std::vector<std::string> tools = {"ladder"};

  void visit(ConfigFields& fields) {
    fields.field("name", name, "what the orchard is called");
    fields.field("num_trees", num_trees, "trees that bear fruit");
    fields.field("sweetness", sweetness, "sugar per weight");
    fields.field("organic", organic, "no spraying");
    fields.field("rows", rows, "trees of each row");
    fields.field("tools", tools, "what stands in the shed");
  }
  void check() const {
    MIRABELLE_CHECK_USAGE(num_trees > 0, "orchard.num_trees must be positive, not ", num_trees);
  }
};

struct Market {
  double price = 3;
  int64_t num_crates = 0;
  std::vector<double> discounts;

  void visit(ConfigFields& fields) {
    fields.field("price", price, "per crate");
    fields.field("num_crates", num_crates, "");
    fields.field("discounts", discounts, "");
  }
  void check() const {}
};

class YamlReaderTest : public ::testing::Test {
 protected:
  void read(const std::string& text) { read_yaml_text(text, "farm.yaml", sections_); }

  /// The one line with which this YAML is refused.
  std::string refusal(const std::string& text) {
    return message_of([&] { read(text); });
  }
  std::string override_refusal(const std::string& assignment) {
    return message_of([&] { apply_override(assignment, sections_); });
  }

  template <typename Body>
  std::string message_of(Body&& body) {
    try {
      body();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage);
      EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos);
      return error.what();
    }
    return "nothing was refused";
  }

  Orchard orchard_;
  Market market_;
  std::vector<ConfigSection> sections_ = {config_section("orchard", orchard_),
                                          config_section("market", market_)};
};

// --- what is read
// ---------------------------------------------------------------------------------

TEST_F(YamlReaderTest, ReadsEveryTypeOfField) {
  read(
      "orchard:\n  name: Nancy\n  num_trees: -7\n  sweetness: 2.5e-3\n  organic: false\n"
      "  rows: [1, 2, 3]\n  tools:\n    - saw\n    - 'rope 2'\nmarket: {price: 4, num_crates: "
      "9}\n");
  EXPECT_EQ(orchard_.name, "Nancy");
  EXPECT_EQ(orchard_.num_trees, -7);
  EXPECT_EQ(orchard_.sweetness, 2.5e-3);
  EXPECT_FALSE(orchard_.organic);
  EXPECT_EQ(orchard_.rows, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(orchard_.tools, (std::vector<std::string>{"saw", "rope 2"}));
  EXPECT_EQ(market_.price, 4.0);
  EXPECT_EQ(market_.num_crates, 9);
}

TEST_F(YamlReaderTest, KeepsDefaultsOfWhatIsNotMentioned) {
  read("orchard:\n  num_trees: 3\nmarket:\n");
  EXPECT_EQ(orchard_.num_trees, 3);
  EXPECT_EQ(orchard_.name, "mirabelle");
  EXPECT_EQ(orchard_.rows, (std::vector<int64_t>{4, 8}));
  EXPECT_EQ(market_.price, 3.0);
}

TEST_F(YamlReaderTest, AnEmptyFileChangesNothing) {
  for (const char* text : {"", "\n\n", "# only a comment\n", "---\n", "{}"}) {
    read(text);
    EXPECT_EQ(orchard_.num_trees, 12) << text;
    EXPECT_EQ(market_.price, 3.0) << text;
  }
}

TEST_F(YamlReaderTest, IntegersMayBeWrittenScientifically) {
  const std::pair<const char*, int64_t> cases[] = {{"1e6", 1000000},
                                                   {"2.5e3", 2500},
                                                   {"1E+2", 100},
                                                   {"+5", 5},
                                                   {"-3e2", -300},
                                                   {"007", 7},
                                                   {"0", 0},
                                                   {"9223372036854775807", INT64_MAX},
                                                   {"-9223372036854775808", INT64_MIN}};
  for (const auto& [text, value] : cases) {
    read("orchard: {num_trees: " + std::string(text) + "}");
    EXPECT_EQ(orchard_.num_trees, value) << text;
  }
}

TEST_F(YamlReaderTest, NumbersThatAreNoIntegersAreRefused) {
  for (const std::string text :
       {"1.5", "6.0", "1.5e0", "1e-3", "1_000", "0x10", "9223372036854775808", "1e300", "12a",
        "'12'", "~", "true", "", "[1]"}) {
    orchard_.num_trees = 12;
    const std::string message = refusal("orchard:\n  num_trees: " + text + "\n");
    EXPECT_EQ(message.find("farm.yaml:2: orchard.num_trees wants an integer, not "), 0u)
        << text << " gave " << message;
    EXPECT_EQ(orchard_.num_trees, 12) << text;
  }
}

TEST_F(YamlReaderTest, RealNumbersTakeIntegersAndInfinities) {
  const std::pair<const char*, double> cases[] = {
      {"3", 3}, {"-.5", -.5}, {"+1e-3", 1e-3}, {".inf", INFINITY}, {"-.inf", -INFINITY}};
  for (const auto& [text, value] : cases) {
    read("market: {price: " + std::string(text) + "}");
    EXPECT_EQ(market_.price, value) << text;
  }
  for (const std::string text : {"nan", "inf", "1,5", "1e999", "three", "\"3\"", "1.2.3", "+-3"}) {
    const std::string message = refusal("market:\n  price: " + text);
    EXPECT_EQ(message.find("farm.yaml:2: market.price wants a number, not "), 0u) << message;
  }
}

TEST_F(YamlReaderTest, OnlyTrueAndFalseAreTruthValues) {
  for (const std::string text : {"yes", "no", "on", "1", "True", "'true'", "maybe"}) {
    const std::string message = refusal("orchard: {organic: " + text + "}");
    EXPECT_EQ(message.find("farm.yaml:1: orchard.organic wants true or false, not "), 0u)
        << message;
  }
}

TEST_F(YamlReaderTest, PlainTextNeedsNoQuotes) {
  for (const std::string text : {"12", "true", "1e6", "../a b/c.yaml", "Äpfel"}) {
    read("orchard:\n  name: " + text);
    EXPECT_EQ(orchard_.name, text);
  }
  read("orchard:\n  name: \"\"");
  EXPECT_EQ(orchard_.name, "");
}

// --- what is refused
// ------------------------------------------------------------------------------

TEST_F(YamlReaderTest, SaysFileLineAndNearestNameOfAnUnknownKey) {
  EXPECT_EQ(refusal("orchard:\n  name: x\n\n  num_tree: 3\n"),
            "farm.yaml:4: there is no key orchard.num_tree; did you mean orchard.num_trees?");
  EXPECT_EQ(orchard_.name, "mirabelle");  // refused as a whole
}

TEST_F(YamlReaderTest, FindsAKeyThatStandsInTheWrongSection) {
  EXPECT_EQ(refusal("orchard:\n  price: 3\n"),
            "farm.yaml:2: there is no key orchard.price; did you mean market.price?");
}

TEST_F(YamlReaderTest, ListsTheKeysWhenNoneIsNear) {
  EXPECT_EQ(refusal("market:\n  weather_of_tomorrow: fine\n"),
            "farm.yaml:2: there is no key market.weather_of_tomorrow; its keys are price, "
            "num_crates, discounts");
}

TEST_F(YamlReaderTest, SuggestsTheNearestSection) {
  EXPECT_EQ(refusal("orchid:\n  name: x\n"),
            "farm.yaml:1: there is no section orchid; did you mean orchard?");
  EXPECT_EQ(
      refusal("\nweather_of_tomorrow: fine\n"),
      "farm.yaml:2: there is no section weather_of_tomorrow; the sections are orchard, market");
}

TEST_F(YamlReaderTest, SuggestsTheSectionOfAKeyOnTheOutermostLevel) {
  EXPECT_EQ(refusal("sweetness: 1\n"),
            "farm.yaml:1: there is no section sweetness; did you mean orchard.sweetness?");
}

TEST_F(YamlReaderTest, RefusesAKeyGivenTwice) {
  EXPECT_EQ(refusal("orchard:\n  num_trees: 1\n  name: x\n  num_trees: 2\n"),
            "farm.yaml:4: orchard.num_trees is given a second time, first at farm.yaml:2");
}

TEST_F(YamlReaderTest, RefusesASectionGivenTwice) {
  EXPECT_EQ(refusal("orchard: {num_trees: 1}\nmarket: {price: 2}\norchard: {name: x}\n"),
            "farm.yaml:3: section orchard is given a second time, first at farm.yaml:1");
}

TEST_F(YamlReaderTest, RefusesValuesOfAnotherType) {
  EXPECT_EQ(refusal("orchard:\n  num_trees: many\n"),
            "farm.yaml:2: orchard.num_trees wants an integer, not \"many\"");
  EXPECT_EQ(refusal("orchard:\n  num_trees: '3'\n"),
            "farm.yaml:2: orchard.num_trees wants an integer, not the text \"3\"");
  EXPECT_EQ(refusal("orchard:\n  name: [a, b]\n"),
            "farm.yaml:2: orchard.name wants text, not [\"a\", \"b\"]");
  EXPECT_EQ(refusal("orchard:\n  name: {a: 1}\n"),
            "farm.yaml:2: orchard.name wants text, not a table of keys");
  EXPECT_EQ(refusal("orchard:\n  name:\n  num_trees: 3\n"),
            "farm.yaml:2: orchard.name wants text, not nothing");
  EXPECT_EQ(refusal("orchard:\n  rows: 3\n"),
            "farm.yaml:2: orchard.rows wants a list of integers such as [256, 256], not \"3\"");
  EXPECT_EQ(
      refusal("orchard:\n  rows: [3, x]\n"),
      "farm.yaml:2: orchard.rows wants a list of integers such as [256, 256], not [\"3\", \"x\"]");
  EXPECT_EQ(
      refusal("orchard:\n  tools: [saw, [1]]\n"),
      "farm.yaml:2: orchard.tools wants a list of texts such as [title, image], not [\"saw\", a "
      "list]");
}

TEST_F(YamlReaderTest, RefusesASectionThatIsNoTable) {
  EXPECT_EQ(refusal("market:\n  price: 1\norchard: 3\n"),
            "farm.yaml:3: section orchard wants keys and values, not \"3\"");
}

TEST_F(YamlReaderTest, RefusesAFileThatIsNoTable) {
  EXPECT_EQ(refusal("- a\n- b\n"), "farm.yaml:1: wanted sections with keys and values, not a list");
  EXPECT_EQ(refusal("hello\n"), "farm.yaml:1: wanted sections with keys and values, not \"hello\"");
}

TEST_F(YamlReaderTest, RefusesKeysThatAreNoNames) {
  EXPECT_EQ(refusal("orchard:\n  [a]: 3\n"), "farm.yaml:2: a key must be a name, not a list");
  EXPECT_EQ(refusal("[a]: 3\n"), "farm.yaml:1: a key must be a name, not a list");
}

TEST_F(YamlReaderTest, SaysTheLineOfBrokenYaml) {
  const std::string message = refusal("orchard:\n  name: x\n  rows: [1, 2\nmarket:\n  price: 3\n");
  EXPECT_EQ(message.find("farm.yaml:"), 0u) << message;
  EXPECT_NE(message.find(": not valid YAML: "), std::string::npos) << message;
  EXPECT_EQ(refusal("orchard:\n  name: x\n\tnum_trees: 3\n").find("farm.yaml:3: not valid YAML"),
            0u);
}

TEST_F(YamlReaderTest, RefusesSeveralDocuments) {
  EXPECT_EQ(refusal("orchard: {num_trees: 1}\n---\nmarket: {price: 1}\n"),
            "farm.yaml: holds several YAML documents, wanted one");
}

TEST_F(YamlReaderTest, EndsWithHostileText) {
  // yaml-cpp reads documents from this without end
  EXPECT_NE(refusal(",ata: &* {co:u %prslnix}\ntn\xffkeoezer:\x06 \n"), "nothing was refused");
  EXPECT_NE(refusal(std::string(100'000, '[')).find("not valid YAML"), std::string::npos);
  EXPECT_EQ(refusal(std::string(1 << 20, ' ')),
            "farm.yaml: has 1048576 bytes, wanted a configuration of at most 262144");
}

TEST_F(YamlReaderTest, CutsLongNamesAndValues) {
  const std::string name(1000, 'x'), shown = std::string(100, 'x') + "...";
  EXPECT_EQ(refusal("orchard: {" + name + ": 1}"), "farm.yaml:1: there is no key orchard." + shown);
  EXPECT_EQ(refusal(name + ": {}"), "farm.yaml:1: there is no section " + shown);
  EXPECT_EQ(refusal("orchard: {num_trees: " + name + "}"),
            "farm.yaml:1: orchard.num_trees wants an integer, not \"" + shown + "\"");
}

TEST_F(YamlReaderTest, SaysThatAFileIsMissing) {
  EXPECT_EQ(message_of([&] { read_yaml_file("/nowhere/farm.yaml", sections_); }),
            "/nowhere/farm.yaml: no such file");
}

TEST_F(YamlReaderTest, ReadsFilesAndNamesThem) {
  const auto path = std::filesystem::temp_directory_path() / "mirabelle_yaml_reader_test.yaml";
  write_text_file(path, "orchard:\n  num_trees: 5\n");
  read_yaml_file(path, sections_);
  EXPECT_EQ(orchard_.num_trees, 5);
  write_text_file(path, "orchard:\n  trees: 5\n");
  const std::string message = message_of([&] { read_yaml_file(path, sections_); });
  EXPECT_EQ(message.find(path.string() + ":2: there is no key orchard.trees"), 0u) << message;
  std::filesystem::remove(path);
}

// --- overrides
// ------------------------------------------------------------------------------------

TEST_F(YamlReaderTest, OverridesEveryTypeOfField) {
  for (const char* assignment :
       {"orchard.name=a=b c", "orchard.num_trees=1e3", "orchard.sweetness=3e-4",
        "orchard.organic=false", "orchard.rows=[1,2]", "orchard.tools=[]", "market.price= 7"}) {
    apply_override(assignment, sections_);
  }
  EXPECT_EQ(orchard_.name, "a=b c");
  EXPECT_EQ(orchard_.num_trees, 1000);
  EXPECT_EQ(orchard_.sweetness, 3e-4);
  EXPECT_FALSE(orchard_.organic);
  EXPECT_EQ(orchard_.rows, (std::vector<int64_t>{1, 2}));
  EXPECT_TRUE(orchard_.tools.empty());
  EXPECT_EQ(market_.price, 7.0);
}

TEST_F(YamlReaderTest, AnOverrideMayEmptyAText) {
  apply_override("orchard.name=", sections_);
  EXPECT_EQ(orchard_.name, "");
  EXPECT_EQ(override_refusal("market.price="),
            "--set market.price=: market.price wants a number, not the text \"\"");
}

TEST_F(YamlReaderTest, RefusesUnknownKeysInOverrides) {
  EXPECT_EQ(override_refusal("market.prise=3"),
            "--set market.prise=3: there is no key market.prise; did you mean market.price?");
  EXPECT_EQ(override_refusal("markt.price=3"),
            "--set markt.price=3: there is no section markt; did you mean market?");
}

TEST_F(YamlReaderTest, RefusesMalformedOverrides) {
  const std::string wanted = ": wanted section.key=value such as training.learning_rate=3e-4";
  EXPECT_EQ(override_refusal("market.price"), "--set market.price" + wanted);
  EXPECT_EQ(override_refusal("price=3"), "--set price=3" + wanted + "; did you mean market.price?");
  EXPECT_EQ(override_refusal("=3"), "--set =3" + wanted);
  const std::string broken = override_refusal("orchard.rows=[1, 2");
  EXPECT_EQ(broken.find("--set orchard.rows=[1, 2: not valid YAML: "), 0u) << broken;
}

TEST_F(YamlReaderTest, RefusesValuesOfAnotherTypeInOverrides) {
  EXPECT_EQ(override_refusal("orchard.rows=7"),
            "--set orchard.rows=7: orchard.rows wants a list of integers such as [256, 256], not "
            "\"7\"");
  EXPECT_EQ(override_refusal("market.price=cheap"),
            "--set market.price=cheap: market.price wants a number, not \"cheap\"");
}

// --- writing
// --------------------------------------------------------------------------------------

TEST_F(YamlReaderTest, WritesEveryKeyInOrder) {
  EXPECT_EQ(to_yaml(sections_, false),
            "orchard:\n  name: mirabelle\n  num_trees: 12\n  sweetness: 0.5\n  organic: true\n"
            "  rows: [4, 8]\n  tools: [ladder]\n\nmarket:\n  price: 3\n  num_crates: 0\n  "
            "discounts: []\n");
}

TEST_F(YamlReaderTest, WritesMeaningsAsCommentsThatReadAsNothing) {
  orchard_.num_trees = 99;
  const std::string text = to_yaml(sections_, true);
  EXPECT_NE(text.find("\n  num_trees: 99                     # trees that bear fruit\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\n  num_crates: 0\n"), std::string::npos) << text;  // no meaning, no comment
  orchard_ = Orchard();
  read(text);
  EXPECT_EQ(orchard_.num_trees, 99);
}

TEST_F(YamlReaderTest, DoublesComeBackWithTheSameBits) {
  std::mt19937_64 generator(1);
  std::vector<double> values = {0.0,
                                -0.0,
                                0.1,
                                1.0 / 3,
                                1e-300,
                                5e-324,
                                1.7976931348623157e308,
                                2e-3,
                                1e15,
                                1e16,
                                123456789.123456789,
                                INFINITY,
                                -INFINITY};
  while (values.size() < 2000) {
    const double value = std::bit_cast<double>(generator());
    if (std::isfinite(value)) values.push_back(value);
  }
  for (const double value : values) {
    market_.price = value;
    const std::string text = to_yaml(sections_, false);
    market_.price = 3;
    read(text);
    EXPECT_EQ(std::bit_cast<uint64_t>(market_.price), std::bit_cast<uint64_t>(value)) << text;
  }
  market_.price = NAN;
  read(to_yaml(sections_, false));
  EXPECT_TRUE(std::isnan(market_.price));
}

TEST_F(YamlReaderTest, TextsComeBackAsTheyWere) {
  for (const std::string& text :
       std::vector<std::string>{"",          " ",        "a b",       "runs/train-1.2",
                                "/data/x_y", "../x",     "true",      "No",
                                "null",      "~",        "12",        "1e6",
                                "-3",        "a: b",     "a #b",      "#c",
                                "[x]",       "{x}",      "'",         "\"",
                                "\\",        "a\\nb",    "a\nb",      "a\tb",
                                "\r\n",      "\x01\x7f", "&a",        "*a",
                                "!t",        "%",        "@",         "`",
                                "-",         "- a",      "?",         ":",
                                "a,b",       "Äpfel 梅", "trailing ", "=",
                                "<<",        "a\"b'c"}) {
    orchard_.name = text;
    orchard_.tools = {text, "x", text};
    const std::string yaml = to_yaml(sections_, true);
    orchard_ = Orchard();
    read(yaml);
    EXPECT_EQ(orchard_.name, text) << yaml;
    EXPECT_EQ(orchard_.tools, (std::vector<std::string>{text, "x", text})) << yaml;
  }
}

TEST_F(YamlReaderTest, ListsOfNumbersComeBackAsTheyWere) {
  market_.discounts = {0.1, 1.0 / 3, -2, 1e-300};
  const std::string yaml = to_yaml(sections_, false);
  market_ = Market();
  read(yaml);
  EXPECT_EQ(market_.discounts, (std::vector<double>{0.1, 1.0 / 3, -2, 1e-300}));
  EXPECT_EQ(
      override_refusal("market.discounts=[0.1, much]")
          .find("--set market.discounts=[0.1, much]: market.discounts wants a list of numbers"),
      0u);
}

TEST_F(YamlReaderTest, IntegersAndListsComeBackAsTheyWere) {
  for (const int64_t value : {int64_t{0}, INT64_MAX, INT64_MIN, int64_t{-1}}) {
    orchard_.num_trees = value;
    orchard_.rows = {value, 1};
    const std::string yaml = to_yaml(sections_, false);
    orchard_ = Orchard();
    read(yaml);
    EXPECT_EQ(orchard_.num_trees, value);
    EXPECT_EQ(orchard_.rows, (std::vector<int64_t>{value, 1}));
  }
  orchard_.rows.clear();
  orchard_.tools.clear();
  const std::string yaml = to_yaml(sections_, false);
  orchard_ = Orchard();
  read(yaml);
  EXPECT_TRUE(orchard_.rows.empty() && orchard_.tools.empty());
}

}  // namespace
}  // namespace mirabelle
