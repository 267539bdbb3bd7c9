//! The terminal's tables, and what the docs get: Markdown between markers, and plots beside.

use crate::error::{Doing, Failure, Outcome};
use crate::findings::{Table, shown};
use crate::plot;
use crate::results::Results;
use comfy_table::{CellAlignment, ContentArrangement, LineStyle, presets};
use std::fmt::Write as _;
use std::path::Path;

/// Around what the benchmark writes in `docs/performance.md`.
const PAGE: (&str, &str) = ("<!-- bench: begin -->", "<!-- bench: end -->");
/// The same in `README.md`.
const RATIOS: (&str, &str) = ("<!-- bench ratios: begin -->", "<!-- bench ratios: end -->");
/// Of the terminal's tables: long cells are broken.
const WIDTH: u16 = 130;
/// Where the page's plots are, beside it.
const PLOTS: &str = "performance";

/// A table for the terminal.
pub(crate) fn terminal(table: &Table) -> String {
    let mut drawn = comfy_table::Table::new();
    drawn.load_style(presets::NOTHING.header_separator(LineStyle::none().fill('─').junction('─')));
    drawn.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    drawn.set_header(table.head.clone());
    drawn.add_rows(table.rows.clone());
    for (n, column) in drawn.column_iter_mut().enumerate() {
        if is_figures(table, n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n{drawn}", table.title)
}

/// Whether a column holds figures: they stand at the right.
fn is_figures(table: &Table, column: usize) -> bool {
    let begins = |c: &str| c.is_empty() || c.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    column > 0 && table.rows.iter().all(|row| row.get(column).is_some_and(|c| begins(c)))
}

/// Writes the page, its plots, and the README's ratios into this folder, laid out as the project is.
pub(crate) fn write(results: &Results, project: &Path) -> Outcome<()> {
    let docs = project.join("docs");
    let plots = docs.join(PLOTS);
    std::fs::create_dir_all(&plots).doing(plots.display())?;
    for plot in results.sections.iter().flat_map(|s| &s.found.plots) {
        plot::draw(plot, &plots.join(format!("{}.svg", plot.name)))?;
    }
    put(&docs.join("performance.md"), PAGE, &markdown(results))?;
    put(&project.join("README.md"), RATIOS, &ratios(results))
}

fn put(path: &Path, markers: (&str, &str), text: &str) -> Outcome<()> {
    let page = std::fs::read_to_string(path).doing(path.display())?;
    let page = between(&page, markers, text).ok_or_else(|| {
        Failure::new(format!("{} has no {} and {} after it", path.display(), markers.0, markers.1))
    })?;
    std::fs::write(path, page).doing(path.display())
}

/// The page with this text between the markers, each on a line of its own; none: they are not there, in that order, once each.
fn between(page: &str, (begin, end): (&str, &str), text: &str) -> Option<String> {
    let (before, rest) = page.split_once(begin)?;
    let (_, after) = rest.split_once(end)?;
    let is_alone = [begin, end].iter().all(|marker| page.matches(marker).count() == 1);
    is_alone.then(|| format!("{before}{begin}\n\n{}\n\n{end}{after}", text.trim()))
}

/// What stands in the page.
fn markdown(results: &Results) -> String {
    let mut t = format!(
        "Measured on {} with {} on {}{}{}.\n\n",
        results.day,
        results.version,
        results.machine,
        if results.quick { ", quickly: figures are rough" } else { "" },
        if results.forced() { ", beside other work: figures mean little" } else { "" },
    );
    t += "## Promises\n\n";
    t += &markdown_table(&results.table());
    for reason in results.reasons() {
        let _ = write!(t, "\n{reason}\n");
    }
    for s in &results.sections {
        let mut about = s.about.clone();
        about[..1].make_ascii_uppercase();
        let _ = write!(t, "\n## {about}\n");
        for plot in &s.found.plots {
            let _ = write!(t, "\n![{}]({PLOTS}/{}.svg)\n", plot.title, plot.name);
        }
        for table in &s.found.tables {
            let _ = write!(t, "\n{}:\n\n{}", table.title, markdown_table(table));
        }
        for note in &s.found.notes {
            let _ = write!(t, "\n{note}\n");
        }
    }
    t
}

fn markdown_table(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|c| c.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rules: Vec<String> =
        (0..table.head.len()).map(|n| if is_figures(table, n) { "---:" } else { "---" }.to_owned()).collect();
    let rows: String = table.rows.iter().map(|r| line(r)).collect();
    format!("{}{}{rows}", line(&table.head), line(&rules))
}

/// Only what means something on another machine.
fn ratios(results: &Results) -> String {
    let values = results.values();
    let rows = [
        (
            "CPU of `builtin:gap`, file to JSON lines, epochs of 1 s made durable",
            "whole.builtin:gap.ratio",
            "of the yardstick's",
        ),
        (
            "the same with `gap-sessions`, the rule as a component",
            "whole.gap-sessions.ratio",
            "of the yardstick's",
        ),
        ("the component beside the built-in rule", "whole.wasm.of_built_in", "of its CPU"),
        ("with early rows every second beside without", "whole.early.growth", "of its CPU"),
        ("an event, from the fewest to the most live keys", "keys.whole.growth", "of its CPU"),
        ("two lanes beside one", "lanes.wasm.ratio", "of its CPU"),
    ];
    let mut table = Table::new("", &["", "times"]);
    for (what, name, of) in rows {
        if let Some(value) = values.get(name) {
            table.row([what.to_owned(), format!("{} {of}", shown(*value))]);
        }
    }
    let head = "The yardstick is a hand-written program for the same job, on one thread, without checkpoints and plugins.\n\n";
    format!("{head}{}", markdown_table(&table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let page = "before\n<a>\nold\nolder\n</a>\nafter\n";
        let new = between(page, ("<a>", "</a>"), "\nnew\n").unwrap();
        assert_eq!(new, "before\n<a>\n\nnew\n\n</a>\nafter\n");
        assert_eq!(between(&new, ("<a>", "</a>"), "new"), Some(new.clone()), "twice is once");
    }

    #[test]
    fn a_page_without_its_markers_is_left_alone() {
        for page in ["", "<a>", "</a><a>", "<a></a><a></a>", "<a><a></a>", "<a></a></a>"] {
            assert_eq!(between(page, ("<a>", "</a>"), "new"), None, "{page}");
        }
    }

    #[test]
    fn the_page_has_every_promise_and_its_tables_hold() {
        let text = markdown(&results(&[("whole.gap-sessions.ratio", 1.25)]));
        for promise in crate::promises::ALL {
            assert!(text.contains(promise.text), "no {} in {text}", promise.text);
        }
        assert!(text.contains("| a \\| b | 1 |") && text.contains("| --- | ---: |"), "{text}");
        assert!(text.contains("1.25 times | met |") && text.contains("## The whole\n"), "{text}");
        assert!(text.contains("not measured") && !text.contains("mean little"), "{text}");
    }

    #[test]
    fn the_readme_gets_ratios_alone() {
        let text = ratios(&results(&[("whole.gap-sessions.ratio", 1.2345), ("stage.wasm.ns", 395.0)]));
        assert!(text.contains("1.23 of the yardstick's") && !text.contains("395"), "{text}");
    }

    #[test]
    fn columns_of_figures_are_found() {
        let mut table = Table::new("", &["a", "b", "c"]);
        table.row(["1", "2.5", "x"]);
        table.row(["1", "", "3"]);
        assert_eq!([0, 1, 2].map(|n| is_figures(&table, n)), [false, true, false]);
        assert!(terminal(&table).contains("2.5"));
    }
}
