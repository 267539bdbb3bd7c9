//! A host that runs on, and what it says over its admin API.

use crate::child;
use crate::error::{Doing, Failure, Outcome};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest that anything here is waited for.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Calls until it gives something, for ten minutes.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Outcome<Option<T>>) -> Outcome<T> {
    let begun = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if begun.elapsed() > WAIT_MAX {
            return Err(Failure::new(format!("waited {WAIT_MAX:?} in vain for {what}")));
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A running `tidemill run`; killed when dropped.
#[derive(Debug)]
pub(crate) struct Host {
    child: Child,
    said: PathBuf,
    state: PathBuf,
    agent: ureq::Agent,
    address: String,
    token: String,
}

impl Host {
    /// Starts it with this config, in the config's folder, where `state` is its data directory; returns at once.
    pub(crate) fn spawn(bin: &Path, config: &Path) -> Outcome<Host> {
        let folder = config.parent().unwrap_or(Path::new("."));
        let said = folder.join("said.txt");
        let out = File::create(&said).doing(said.display())?;
        let child = Command::new(bin)
            .arg("run")
            .arg(config)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone().doing(said.display())?)
            .stderr(out)
            .spawn()
            .doing(format_args!("{} cannot be started", bin.display()))?;
        let quick =
            ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(WAIT_MAX)).build();
        let state = folder.join("state");
        Ok(Host { child, said, state, agent: quick.into(), address: String::new(), token: String::new() })
    }

    /// The same, and waits until its pipelines run.
    pub(crate) fn start(bin: &Path, config: &Path) -> Outcome<Host> {
        let mut host = Host::spawn(bin, config)?;
        host.runs()?;
        Ok(host)
    }

    /// Waits until all its pipelines read.
    pub(crate) fn runs(&mut self) -> Outcome<()> {
        let address = wait_for("the admin API", || {
            self.lives()?;
            Ok(self.after("the admin API is at http://"))
        })?;
        self.address = address;
        let token = std::fs::read_to_string(self.state.join("token")).doing("the token")?;
        token.trim().clone_into(&mut self.token);
        wait_for("its pipelines to run", || {
            self.lives()?;
            let all = self.get("/api/v1/pipelines")?;
            let runs = |p: &Value| p["state"] == "running";
            Ok(all["pipelines"].as_array().is_some_and(|all| all.iter().all(runs)).then_some(()))
        })
    }

    /// What stands in what it said after this, up to a space or a slash.
    pub(crate) fn after(&self, text: &str) -> Option<String> {
        let said = self.said();
        let (_, rest) = said.split_once(text)?;
        let end = rest.find(|c: char| c.is_whitespace() || c == '/')?;
        Some(rest[..end].to_owned())
    }

    /// All that it said.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.said).unwrap_or_default()).into_owned()
    }

    /// An error if it has ended.
    pub(crate) fn lives(&mut self) -> Outcome<()> {
        match self.child.try_wait().doing("tidemill")? {
            None => Ok(()),
            Some(status) => Err(Failure::new(format!("tidemill: {status}\n{}", self.said().trim_end()))),
        }
    }

    /// Reads something of the admin API.
    pub(crate) fn get(&self, path: &str) -> Outcome<Value> {
        match self.ask("GET", path, &[], &[])? {
            (200, body) => serde_json::from_slice(&body).doing(path),
            (status, body) => {
                Err(Failure::new(format!("{path}: {status}: {}", String::from_utf8_lossy(&body))))
            }
        }
    }

    /// Asks the admin API; the status and the body.
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Outcome<(u16, Vec<u8>)> {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("authorization", format!("Bearer {}", self.token));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).doing(path)?;
        let mut answer = self.agent.run(request).doing(path)?;
        let status = answer.status().as_u16();
        Ok((status, answer.body_mut().read_to_vec().doing(path)?))
    }

    /// What a pipeline shows.
    pub(crate) fn pipeline(&self, name: &str) -> Outcome<Value> {
        self.get(&format!("/api/v1/pipelines/{name}"))
    }

    /// What is measured in it.
    pub(crate) fn metrics(&self) -> Outcome<Metrics> {
        let (status, body) = self.ask("GET", "/metrics", &[], &[])?;
        if status != 200 {
            return Err(Failure::new(format!("/metrics: {status}")));
        }
        Ok(Metrics(String::from_utf8_lossy(&body).into_owned()))
    }

    /// Waits until so many records are read and committed.
    pub(crate) fn has_read(&mut self, records: u64) -> Outcome<()> {
        wait_for("the input to be read", || {
            self.lives()?;
            let read = self.metrics()?.sum("tidemill_records_total", "");
            Ok((read >= crate::figures::of_count(records)).then_some(()))
        })
    }

    /// Waits until its sinks have all that is committed.
    pub(crate) fn has_delivered(&mut self) -> Outcome<()> {
        wait_for("the sinks", || {
            self.lives()?;
            Ok((self.metrics()?.sum("tidemill_sink_lag_bytes", "") == 0.0).then_some(()))
        })
    }

    /// CPU seconds until now.
    pub(crate) fn cpu_s(&self) -> Outcome<f64> {
        child::cpu_s(self.child.id())
    }

    /// Resident bytes now.
    pub(crate) fn resident_bytes(&self) -> Outcome<f64> {
        child::resident_bytes(self.child.id())
    }

    /// kill -9, and waits for the end.
    pub(crate) fn kill(&mut self) {
        // It may have ended by itself just now, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, and waits for that.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("tidemill has no process id"))?;
        kill_process(pid, Signal::TERM).doing("stopping tidemill")?;
        self.ends()
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn ends(&mut self) -> Outcome<()> {
        let status = wait_for("tidemill to end", || self.child.try_wait().doing("tidemill"))?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("tidemill: {status}\n{}", self.said().trim_end())))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A page in Prometheus' text format.
#[derive(Debug)]
pub(crate) struct Metrics(String);

impl Metrics {
    /// The sum of all of this name that have this label (as `name="value"`; of none: all).
    pub(crate) fn sum(&self, name: &str, label: &str) -> f64 {
        let values = self.0.lines().filter_map(|l| {
            let rest = l.strip_prefix(name).filter(|r| r.starts_with(['{', ' ']))?;
            if rest.contains(label) { rest.rsplit(' ').next()?.parse::<f64>().ok() } else { None }
        });
        values.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_by_name_and_label() {
        let page = Metrics(
            "# HELP a_total a 3\na_total{p=\"x\",s=\"1\"} 3\na_total{p=\"y\",s=\"1\"} 4\na_total_more 9\nb 2.5\n".into(),
        );
        assert_eq!(
            [page.sum("a_total", ""), page.sum("a_total", "p=\"y\""), page.sum("b", "")],
            [7.0, 4.0, 2.5]
        );
        assert_eq!(page.sum("c", ""), 0.0);
    }
}
