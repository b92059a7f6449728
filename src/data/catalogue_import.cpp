#include "catalogue_import.h"

#include <algorithm>
#include <vector>

#include "line_reader.h"
#include "mirabelle/core/error.h"
#include "mirabelle/core/json.h"
#include "mirabelle/data/npy.h"

namespace mirabelle {

using nlohmann::json;

void read_catalogue(
    const std::filesystem::path& path,
    const std::function<void(const CatalogueItem& item, const std::string& where)>& visit) {
  LineReader lines(path);
  std::string_view line;
  while (lines.next(line)) {
    const std::string where = lines.where();
    const json object = parse_json(line, where);
    const json id = json_field<json>(object, "item", where);
    MIRABELLE_CHECK_DATA(id.is_string() || id.is_number_integer(), where, ": \"item\" is ",
                         shown(id), ", wanted an integer or a string");
    CatalogueItem item{id.is_string() ? id.get<std::string>() : id.dump(), "", object.dump()};
    MIRABELLE_CHECK_DATA(is_valid_id(item.id), where, ": \"item\" is ", shown(id),
                         ", which is empty or holds control characters");
    const auto title = object.find("title");
    if (title != object.end() && title->is_string()) item.title = title->get<std::string>();
    visit(item, where);
  }
  MIRABELLE_CHECK_DATA(lines.line_number() > 0, path.string(),
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
  std::vector<float> rows(std::clamp<int64_t>(num_items, 1, kRowsAtOnce) * matrix.dim());
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
