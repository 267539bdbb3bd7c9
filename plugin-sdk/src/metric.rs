//! A plugin's own counters and histograms, exported by the host.

/// A metric of the plugin. Declare it as a constant and name it in `METRICS`.
///
/// ```
/// use tidemill_plugin_sdk::Metric;
/// const CARTS: Metric = Metric::counter("carts", "Carts begun");
/// const PAGES: Metric = Metric::histogram("pages", "Pages a session", &[1.0, 5.0, 20.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Metric {
    /// Its name; the host puts the pipeline and the plugin beside it.
    pub name: &'static str,
    /// What it says, for a reader.
    pub help: &'static str,
    /// Upper bounds of a histogram's buckets, rising; `None` for a counter.
    pub buckets: Option<&'static [f64]>,
}

impl Metric {
    /// A number that rises.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Metric {
        Metric { name, help, buckets: None }
    }
    /// How values are spread.
    #[must_use]
    pub const fn histogram(name: &'static str, help: &'static str, buckets: &'static [f64]) -> Metric {
        Metric { name, help, buckets: Some(buckets) }
    }
    /// Its place among the declared ones.
    #[track_caller]
    pub(crate) fn place(self, declared: &[Metric]) -> u64 {
        match declared.iter().position(|m| m.name == self.name) {
            Some(n) => n as u64,
            None => crate::broken(format_args!("metric `{}` is not in METRICS", self.name)),
        }
    }
}
