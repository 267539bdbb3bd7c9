//! What is counted of the requests themselves.
//!
//! Invariant: a label is a word of ours (a listener, a route as it is written in the code, a method, a status), never
//! something out of a request.

use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use std::sync::Arc;
use std::time::Instant;

/// Seconds: from an answer out of memory to a body over a slow line.
const SECONDS: [f64; 10] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 30.0];

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    requests: IntCounterVec,
    seconds: HistogramVec,
}

impl HttpMetrics {
    /// Nothing counted yet.
    ///
    /// # Errors
    /// If a name or label is none that Prometheus takes.
    pub(crate) fn new() -> Result<HttpMetrics, prometheus::Error> {
        let requests = Opts::new("tidemill_http_requests_total", "Requests that were answered");
        let seconds = HistogramOpts::new(
            "tidemill_http_request_duration_seconds",
            "From the head of a request to the head of its answer",
        );
        Ok(HttpMetrics {
            requests: IntCounterVec::new(requests, &["listener", "route", "method", "status"])?,
            seconds: HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["listener", "route"])?,
        })
    }
}

impl Collector for HttpMetrics {
    fn desc(&self) -> Vec<&Desc> {
        self.requests.desc().into_iter().chain(self.seconds.desc()).collect()
    }
    fn collect(&self) -> Vec<MetricFamily> {
        self.requests.collect().into_iter().chain(self.seconds.collect()).collect()
    }
}

/// Counts a request of a listener.
pub(crate) async fn count(
    State((metrics, listener)): State<(Arc<HttpMetrics>, &'static str)>,
    request: Request,
    next: Next,
) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str);
    let method = word(request.method());
    let response = next.run(request).await;
    let status = response.status();
    metrics.requests.with_label_values(&[listener, route, method, status.as_str()]).inc();
    metrics.seconds.with_label_values(&[listener, route]).observe(begun.elapsed().as_secs_f64());
    response
}

/// A client may make up methods.
fn word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
