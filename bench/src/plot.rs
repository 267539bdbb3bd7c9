//! Plots as SVG: drawn for a light and a dark page alike, on a ground of their own.

use crate::error::{Doing, Outcome};
use crate::findings::{Plot, Shape, shown};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

/// In pixels.
const SIZE: (u32, u32) = (760, 380);
const FONT: &str = "sans-serif";
/// Told apart by those who see fewer colours, too (Okabe and Ito).
const COLOURS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(230, 159, 0), RGBColor(0, 158, 115), RGBColor(204, 121, 167)];
/// Of a group's width, the part that its bars fill.
const FILLED: f64 = 0.8;

/// Draws it into a file.
pub(crate) fn draw(plot: &Plot, path: &Path) -> Outcome<()> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).doing(&plot.name)?;
        match &plot.shape {
            Shape::Bars { groups, series } => bars(&area, plot, groups, series)?,
            Shape::Lines { x, series } => lines(&area, plot, x, series)?,
        }
        area.present().doing(&plot.name)?;
    }
    std::fs::write(path, text).doing(path.display())
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn colour(n: usize) -> RGBColor {
    COLOURS[n % COLOURS.len()]
}

/// A little above the greatest figure.
fn top(figures: impl Iterator<Item = f64>) -> f64 {
    let most = figures.filter(|f| f.is_finite()).fold(0.0, f64::max);
    if most > 0.0 { most * 1.12 } else { 1.0 }
}

fn bars(area: &Area<'_>, plot: &Plot, groups: &[String], series: &[(String, Vec<f64>)]) -> Outcome<()> {
    let top = top(series.iter().flat_map(|(_, bars)| bars.iter().copied()));
    let mut chart = ChartBuilder::on(area)
        .caption(&plot.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(-0.5..groups.len() as f64 - 0.5, 0.0..top)
        .doing(&plot.name)?;
    let group = |x: &f64| {
        let at = x.round();
        // Marks stand between groups too, where there is nothing to name.
        let name = groups.get(at as usize).filter(|_| at >= 0.0 && (x - at).abs() < 0.01);
        name.cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(groups.len() * 2 + 1)
        .x_label_formatter(&group)
        .y_label_formatter(&|y| shown(*y))
        .y_desc(&plot.y)
        .label_style((FONT, 13))
        .draw()
        .doing(&plot.name)?;
    let width = FILLED / series.len().max(1) as f64;
    for (n, (name, figures)) in series.iter().enumerate() {
        let left = |group: usize| group as f64 - FILLED / 2.0 + width * n as f64;
        let drawn = figures.iter().enumerate().filter(|(_, y)| y.is_finite());
        let bar = |(group, y): (usize, &f64)| {
            Rectangle::new(
                [(left(group) + width * 0.04, 0.0), (left(group) + width * 0.96, *y)],
                colour(n).filled(),
            )
        };
        let series = chart.draw_series(drawn.clone().map(bar)).doing(&plot.name)?;
        if !name.is_empty() {
            series
                .label(name)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(n).filled()));
        }
        let figure = |(group, y): (usize, &f64)| {
            Text::new(shown(*y), (left(group) + width * 0.1, *y + top * 0.045), (FONT, 12))
        };
        chart.draw_series(drawn.map(figure)).doing(&plot.name)?;
    }
    if series.iter().any(|(name, _)| !name.is_empty()) {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .label_font((FONT, 13))
            .draw()
            .doing(&plot.name)?;
    }
    Ok(())
}

fn lines(area: &Area<'_>, plot: &Plot, x: &str, series: &[(String, Vec<(f64, f64)>)]) -> Outcome<()> {
    let points = || series.iter().flat_map(|(_, points)| points.iter().copied());
    let least = points().map(|p| p.0).fold(f64::INFINITY, f64::min).max(1.0);
    let most = points().map(|p| p.0).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(&plot.title, (FONT, 20))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d((least.min(most)..most * 1.2).log_scale(), 0.0..top(points().map(|p| p.1)))
        .doing(&plot.name)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_label_formatter(&|x| shown(*x))
        .y_label_formatter(&|y| shown(*y))
        .x_desc(x)
        .y_desc(&plot.y)
        .label_style((FONT, 13))
        .draw()
        .doing(&plot.name)?;
    for (n, (name, points)) in series.iter().enumerate() {
        let line = LineSeries::new(points.iter().copied(), colour(n).stroke_width(2)).point_size(4);
        chart
            .draw_series(line)
            .doing(&plot.name)?
            .label(name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 16, y + 2)], colour(n).filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2))
        .label_font((FONT, 13))
        .draw()
        .doing(&plot.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(shape: Shape) -> String {
        let path = std::env::temp_dir().join(format!(
            "tidemill-bench-plot-{}-{}.svg",
            std::process::id(),
            shape_name(&shape)
        ));
        let plot = Plot { name: "p".into(), title: "A title".into(), y: "ns an event".into(), shape };
        draw(&plot, &path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text
    }

    fn shape_name(shape: &Shape) -> &'static str {
        match shape {
            Shape::Bars { .. } => "bars",
            Shape::Lines { .. } => "lines",
        }
    }

    #[test]
    fn bars_have_their_groups_series_and_figures() {
        let series = vec![("one".to_owned(), vec![1.0, 2.5]), ("two".to_owned(), vec![f64::NAN, 0.75])];
        let text = drawn(Shape::Bars { groups: vec!["left".into(), "right".into()], series });
        for part in ["A title", "ns an event", "left", "right", "one", "two", "2.50", "0.750", "<svg"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn lines_go_over_powers_of_ten() {
        let series = vec![("stage".to_owned(), vec![(10_000.0, 90.0), (1_000_000.0, 400.0)])];
        let text = drawn(Shape::Lines { x: "live keys".into(), series });
        for part in ["live keys", "10,000", "100,000", "1,000,000", "polyline", "stage"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
    }
}
