//! What a measurement found: figures by name for the promises, and tables and plots for whoever reads.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of one measurement.
#[derive(Serialize, Deserialize, Clone, Default, Debug)]
pub(crate) struct Findings {
    /// What promises ask for.
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) tables: Vec<Table>,
    pub(crate) plots: Vec<Plot>,
    /// Sentences below the tables.
    pub(crate) notes: Vec<String>,
}

impl Findings {
    /// Keeps a figure under a name.
    pub(crate) fn value(&mut self, name: impl Into<String>, value: f64) {
        self.values.insert(name.into(), value);
    }

    /// Adds a sentence.
    pub(crate) fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

/// A table of text; the first column names what the others are figures of.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) head: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// Without rows yet.
    pub(crate) fn new(title: impl Into<String>, head: &[&str]) -> Table {
        Table { title: title.into(), head: head.iter().map(|h| (*h).to_owned()).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl Into<String>>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// A plot; `name` is its file's.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) y: String,
    pub(crate) shape: Shape,
}

/// How its figures are drawn.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub(crate) enum Shape {
    /// Groups of bars, one of each series side by side.
    Bars {
        /// What the groups are.
        groups: Vec<String>,
        /// A series' name, and its bar in each group.
        series: Vec<(String, Vec<f64>)>,
    },
    /// Lines over an axis whose every step is ten times the one before.
    Lines {
        /// What the axis is.
        x: String,
        /// A series' name, and its points.
        series: Vec<(String, Vec<(f64, f64)>)>,
    },
}

/// A figure with three places that count, at most.
pub(crate) fn shown(figure: f64) -> String {
    let size = figure.abs();
    match size {
        _ if figure.is_nan() => "?".to_owned(),
        0.0 => "0".to_owned(),
        0.01..1.0 => format!("{figure:.3}"),
        1.0..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        100.0..10_000.0 => format!("{figure:.0}"),
        _ if size < 0.01 => format!("{figure:.5}"),
        _ => count(figure.round() as u64),
    }
}

/// A whole number with spaces between thousands.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, d) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(d);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_as_many_places_as_mean_something() {
        let figures = [0.0, 0.0042, 0.591_7, 1.4712, 23.44, 389.9, 12_345.6, 1_234_567.0, f64::NAN];
        let texts = figures.map(shown);
        assert_eq!(texts, ["0", "0.00420", "0.592", "1.47", "23.4", "390", "12,346", "1,234,567", "?"]);
    }
}
