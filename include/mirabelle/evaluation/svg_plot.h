#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mirabelle {

/// Text for HTML and SVG, with & < > " ' escaped and bytes that are no UTF-8 replaced.
std::string escape_html(std::string_view text);

/// Round numbers that cut [low, high] in about `count` steps, ascending; all lie within.
std::vector<double> nice_ticks(double low, double high, int count);

/// One line, area or row of dots of a plot.
struct PlotSeries {
  std::string name;                               ///< in the legend; empty: not there
  std::string color;                              ///< CSS
  std::vector<std::pair<double, double>> points;  ///< by ascending x
  double stroke_width = 2;
  double opacity = 1;
  bool markers = false;
  bool filled = false;  ///< down to zero
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<PlotSeries> series;
  bool y_from_zero = true;
  int width = 460, height = 270;  ///< CSS pixels
};

/// A self-contained <svg> with axes, ticks, labels and legend. Points that are not finite are left
/// out; more points than pixels are thinned by means.
std::string svg_plot(const Plot& plot);

/// One bar with the interval of its value.
struct PlotBar {
  std::string name, color;
  double value = 0, low = 0, high = 0;
  bool has_interval = true;
};

/// Horizontal bars from zero, the value written behind each.
std::string svg_bars(const std::string& title, const std::vector<PlotBar>& bars);

}  // namespace mirabelle
