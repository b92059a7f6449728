#include "catalogue_import.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "line_reader.h"
#include "mirabelle/core/error.h"
#include "mirabelle/data/npy.h"

namespace mirabelle {

using nlohmann::json;

void import_catalogue(
    const std::filesystem::path& path, CorpusWriter& writer,
    const std::function<void(const std::string& id, const std::string& where)>& check_id) {
  LineReader lines(path);
  std::string_view line;
  while (lines.next(line)) {
    json item;
    try {
      item = json::parse(line);
    } catch (const json::exception& error) {
      throw_error(ErrorKind::kData, lines.where(), ": malformed JSON: ", error.what());
    }
    MIRABELLE_CHECK_DATA(item.is_object() && item.contains("item"), lines.where(),
                         ": wanted a JSON object with an \"item\"");
    const json& id = item["item"];
    MIRABELLE_CHECK_DATA(id.is_string() || id.is_number_integer(), lines.where(), ": \"item\" is ",
                         id.dump(), ", wanted an integer or a string");
    const std::string text = id.is_string() ? id.get<std::string>() : id.dump();
    check_id(text, lines.where());
    const auto title = item.find("title");
    writer.add_item(text,
                    title != item.end() && title->is_string() ? title->get<std::string>() : "",
                    item.dump());
  }
  MIRABELLE_CHECK_DATA(writer.num_items() > 0, path.string(),
                       ": is empty, wanted one item per line");
}

void import_features(const std::filesystem::path& path, const std::string& name,
                     CorpusWriter& writer) {
  constexpr int64_t kRowsAtOnce = 1024;
  NpyReader matrix(path);
  const int64_t num_items = writer.num_items();
  MIRABELLE_CHECK_DATA(matrix.num_rows() == num_items + 1, path.string(), ": has ",
                       matrix.num_rows(), " rows, the catalogue's ", num_items, " items want ",
                       num_items + 1, " (row 0 is unused)");
  std::vector<float> rows(kRowsAtOnce * matrix.dim());
  matrix.read_rows(1, rows.data());
  MIRABELLE_CHECK_DATA(
      std::all_of(rows.begin(), rows.begin() + matrix.dim(), [](float x) { return x == 0; }),
      path.string(), ": row 0 is not zero; row i belongs to item i, and items are numbered from 1");
  writer.add_feature(name, matrix.dim());
  for (int64_t begin = 0; begin < num_items; begin += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_items - begin);
    matrix.read_rows(count, rows.data());
    writer.add_feature_rows(name, rows.data(), count);
  }
}

}  // namespace mirabelle
