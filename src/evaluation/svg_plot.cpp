#include "mirabelle/evaluation/svg_plot.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "mirabelle/core/progress.h"
#include "mirabelle/core/table.h"

namespace mirabelle {
namespace {

using Points = std::vector<std::pair<double, double>>;

/// Length of the valid UTF-8 sequence at text[i], 0 if there is none.
size_t utf8_length(std::string_view text, size_t i) {
  const auto byte = [&](size_t j) { return static_cast<unsigned char>(text[j]); };
  const size_t length = byte(i) < 0x80   ? 1
                        : byte(i) < 0xC2 ? 0
                        : byte(i) < 0xE0 ? 2
                        : byte(i) < 0xF0 ? 3
                        : byte(i) < 0xF5 ? 4
                                         : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t j = 1; j < length; ++j) {
    if ((byte(i + j) & 0xC0) != 0x80) return 0;
  }
  return length;
}

/// A tick's number, with as many decimals as the ticks' distance needs.
std::string tick_text(double value, double distance) {
  if (distance >= 1) return format_count(std::llround(value));
  if (std::abs(value) < 1e-6 * distance) value = 0;  // no minus sign
  const int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(distance) - 1e-9)), 0, 9);
  return format_number(value, decimals);
}

std::string coordinate(double pixels) { return format_number(pixels, 1); }

Points finite_points(const Points& points) {
  Points kept;
  std::copy_if(points.begin(), points.end(), std::back_inserter(kept),
               [](const auto& p) { return std::isfinite(p.first) && std::isfinite(p.second); });
  return kept;
}

/// At most `count` points, each the mean of neighbours.
Points thinned(const Points& points, size_t count) {
  if (points.size() <= count) return points;
  Points out;
  for (size_t i = 0; i < count; ++i) {
    const size_t begin = i * points.size() / count, end = (i + 1) * points.size() / count;
    double x = 0, y = 0;
    for (size_t j = begin; j < end; ++j) {
      x += points[j].first;
      y += points[j].second;
    }
    const auto size = static_cast<double>(end - begin);
    out.emplace_back(x / size, y / size);
  }
  return out;
}

/// Where the numbers of a plot stand on the page.
struct Frame {
  static constexpr double kLeft = 58, kRight = 14, kTop = 50, kBottom = 44;
  double x_low = 0, x_high = 1, y_low = 0, y_high = 1;
  double width = 0, height = 0;

  Frame(const Plot& plot, const std::vector<Points>& series)
      : width(plot.width - kLeft - kRight), height(plot.height - kTop - kBottom) {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    x_low = y_low = kInfinity;
    x_high = y_high = -kInfinity;
    for (const Points& points : series) {
      for (const auto& [x, y] : points) {
        x_low = std::min(x_low, x);
        x_high = std::max(x_high, x);
        y_low = std::min(y_low, y);
        y_high = std::max(y_high, y);
      }
    }
    if (!std::isfinite(x_low)) x_low = y_low = 0, x_high = y_high = 1;
    if (plot.y_from_zero) y_low = std::min(y_low, 0.0);
    if (x_high <= x_low) x_low -= 0.5, x_high += 0.5;
    if (y_high <= y_low) y_high = y_low + (y_low == 0 ? 1 : std::abs(y_low));
    const double margin = 0.06 * (y_high - y_low);
    y_high += margin;
    if (!plot.y_from_zero) y_low -= margin;
  }
  double x(double value) const { return kLeft + (value - x_low) / (x_high - x_low) * width; }
  double y(double value) const { return kTop + (y_high - value) / (y_high - y_low) * height; }
  double bottom() const { return kTop + height; }
  double right() const { return kLeft + width; }
};

void draw_axes(std::ostream& svg, const Plot& plot, const Frame& frame) {
  const std::vector<double> x_ticks = nice_ticks(frame.x_low, frame.x_high, 6);
  const std::vector<double> y_ticks = nice_ticks(frame.y_low, frame.y_high, 5);
  const auto distance = [](const std::vector<double>& ticks) {
    return ticks.size() > 1 ? ticks[1] - ticks[0] : 1.0;
  };
  for (double tick : y_ticks) {
    const std::string y = coordinate(frame.y(tick));
    svg << "<line class='grid' x1='" << Frame::kLeft << "' x2='" << coordinate(frame.right())
        << "' y1='" << y << "' y2='" << y << "'/><text class='tick' text-anchor='end' x='"
        << Frame::kLeft - 7 << "' y='" << coordinate(frame.y(tick) + 3.5) << "'>"
        << tick_text(tick, distance(y_ticks)) << "</text>\n";
  }
  for (double tick : x_ticks) {
    const std::string x = coordinate(frame.x(tick));
    svg << "<line class='axis' x1='" << x << "' x2='" << x << "' y1='" << coordinate(frame.bottom())
        << "' y2='" << coordinate(frame.bottom() + 4) << "'/><text class='tick' "
        << "text-anchor='middle' x='" << x << "' y='" << coordinate(frame.bottom() + 17) << "'>"
        << tick_text(tick, distance(x_ticks)) << "</text>\n";
  }
  svg << "<line class='axis' x1='" << Frame::kLeft << "' x2='" << coordinate(frame.right())
      << "' y1='" << coordinate(frame.bottom()) << "' y2='" << coordinate(frame.bottom())
      << "'/>\n<text class='label' text-anchor='middle' x='"
      << coordinate(Frame::kLeft + frame.width / 2) << "' y='" << plot.height - 8 << "'>"
      << escape_html(plot.x_label) << "</text>\n<text class='label' x='4' y='" << Frame::kTop - 12
      << "'>" << escape_html(plot.y_label) << "</text>\n";
}

void draw_series(std::ostream& svg, const PlotSeries& series, const Points& points,
                 const Frame& frame) {
  if (points.empty()) return;
  std::string path;
  for (const auto& [x, y] : points) {
    path += path.empty() ? 'M' : 'L';
    path += coordinate(frame.x(x)) + " " + coordinate(frame.y(y));
  }
  if (series.filled) {
    const std::string bottom = coordinate(frame.y(std::max(0.0, frame.y_low)));
    svg << "<path d='" << path << "L" << coordinate(frame.x(points.back().first)) << " " << bottom
        << "L" << coordinate(frame.x(points.front().first)) << " " << bottom << "Z' fill='"
        << series.color << "' fill-opacity='0.25'/>\n";
  }
  svg << "<path d='" << path << "' fill='none' stroke='" << series.color << "' stroke-width='"
      << series.stroke_width << "' stroke-opacity='" << series.opacity
      << "' stroke-linejoin='round'/>\n";
  // A line of one point would be invisible.
  if (!series.markers && points.size() > 1) return;
  for (const auto& [x, y] : points) {
    svg << "<circle cx='" << coordinate(frame.x(x)) << "' cy='" << coordinate(frame.y(y))
        << "' r='3' fill='" << series.color << "'/>\n";
  }
}

/// In one row that ends at the right, above the curves, so that it never covers one. The widths of
/// texts are estimates, on the safe side.
void draw_legend(std::ostream& svg, const Plot& plot, const Frame& frame) {
  const auto width = [](const PlotSeries& series) {
    return series.name.empty() ? 0 : 36 + 6.6 * static_cast<double>(display_width(series.name));
  };
  double x = frame.right();
  for (const PlotSeries& series : plot.series) x -= width(series);
  for (const PlotSeries& series : plot.series) {
    if (series.name.empty()) continue;
    const double y = Frame::kTop - 12;
    svg << "<line x1='" << coordinate(x + 10) << "' x2='" << coordinate(x + 26) << "' y1='" << y - 4
        << "' y2='" << y - 4 << "' stroke='" << series.color << "' stroke-width='2.5' "
        << "stroke-opacity='" << series.opacity << "'/><text class='tick' x='" << coordinate(x + 31)
        << "' y='" << y << "'>" << escape_html(series.name) << "</text>\n";
    x += width(series);
  }
}

void open_svg(std::ostream& svg, int width, int height, const std::string& title) {
  svg << "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 " << width << " " << height
      << "' width='" << width << "' height='" << height << "' role='img' aria-label='"
      << escape_html(title) << "'>\n<text class='title' x='4' y='16'>" << escape_html(title)
      << "</text>\n";
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const size_t length = utf8_length(text, i);
    const char c = text[i];
    if (length == 0) {
      out += "\xEF\xBF\xBD";  // replacement character
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      out += text.substr(i, length);
    }
    i += std::max<size_t>(length, 1);
  }
  return out;
}

std::vector<double> nice_ticks(double low, double high, int count) {
  if (!(high > low)) return {low};
  const double rough = (high - low) / count;
  const double magnitude = std::pow(10, std::floor(std::log10(rough)));
  const double distance = magnitude * (rough <= 1.5 * magnitude   ? 1
                                       : rough <= 3.5 * magnitude ? 2
                                       : rough <= 7.5 * magnitude ? 5
                                                                  : 10);
  std::vector<double> ticks;
  const double slack = 1e-9 * distance;
  for (double i = std::ceil((low - slack) / distance); i * distance <= high + slack; ++i) {
    ticks.push_back(i * distance);
  }
  return ticks;
}

std::string svg_plot(const Plot& plot) {
  std::vector<Points> series;
  for (const PlotSeries& s : plot.series) {
    series.push_back(thinned(finite_points(s.points), plot.width));
  }
  const Frame frame(plot, series);
  std::ostringstream svg;
  open_svg(svg, plot.width, plot.height, plot.title);
  draw_axes(svg, plot, frame);
  for (size_t i = 0; i < series.size(); ++i) draw_series(svg, plot.series[i], series[i], frame);
  draw_legend(svg, plot, frame);
  svg << "</svg>\n";
  return svg.str();
}

std::string svg_bars(const std::string& title, const std::vector<PlotBar>& bars) {
  constexpr double kWidth = 460, kLeft = 96, kRight = 70, kTop = 32, kRow = 30;
  double most = 0;
  for (const PlotBar& bar : bars) most = std::max({most, bar.value, bar.high});
  if (!(most > 0)) most = 1;
  const double bottom = kTop + kRow * static_cast<double>(bars.size());
  const auto x = [&](double value) {
    return coordinate(kLeft + value / most * (kWidth - kLeft - kRight));
  };
  std::ostringstream svg;
  open_svg(svg, kWidth, static_cast<int>(bottom) + 26, title);
  const std::vector<double> ticks = nice_ticks(0, most, 5);
  for (double tick : ticks) {
    svg << "<line class='grid' x1='" << x(tick) << "' x2='" << x(tick) << "' y1='" << kTop - 6
        << "' y2='" << bottom << "'/><text class='tick' text-anchor='middle' x='" << x(tick)
        << "' y='" << bottom + 16 << "'>"
        << tick_text(tick, ticks.size() > 1 ? ticks[1] - ticks[0] : 1) << "</text>\n";
  }
  for (size_t i = 0; i < bars.size(); ++i) {
    const PlotBar& bar = bars[i];
    const double y = kTop + kRow * static_cast<double>(i), middle = y + 10;
    const double end = std::max(bar.value, bar.has_interval ? bar.high : 0);
    svg << "<text class='label' text-anchor='end' x='" << kLeft - 8 << "' y='" << middle + 4 << "'>"
        << escape_html(bar.name) << "</text><rect x='" << kLeft << "' y='" << y
        << "' height='20' width='" << coordinate(bar.value / most * (kWidth - kLeft - kRight))
        << "' fill='" << bar.color << "' rx='2'/>";
    if (bar.has_interval) {
      svg << "<path class='interval' d='M" << x(bar.low) << " " << middle << "H" << x(bar.high)
          << "M" << x(bar.low) << " " << middle - 5 << "v10M" << x(bar.high) << " " << middle - 5
          << "v10'/>";
    }
    svg << "<text class='value' x='"
        << coordinate(kLeft + end / most * (kWidth - kLeft - kRight) + 8) << "' y='" << middle + 4
        << "'>" << format_number(bar.value, 4) << "</text>\n";
  }
  svg << "</svg>\n";
  return svg.str();
}

}  // namespace mirabelle
