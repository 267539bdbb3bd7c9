//! A child process and what it costs: CPU time and memory as `/proc` tells them, so Linux only. A child that has ended
//! but was not waited for still shows its CPU time, and its peak of memory only ever rises.

use crate::steps::{Failure, doing, seconds};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The unit of CPU time in `/proc/PID/stat`: fixed for programs since Linux 2.6.
const TICKS_PER_SECOND: f64 = 100.0;
/// Between two looks at a child's memory.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// One run of one program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) cpu_s: f64,
    pub(super) wall: Duration,
    pub(super) peak_kib: u64,
}

impl Cost {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn per_million(&self, events: u64) -> f64 {
        self.cpu_s * 1e6 / events as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(super) fn peak_mib(&self) -> f64 {
        self.peak_kib as f64 / 1024.0
    }

    pub(super) fn line(&self, what: &str, events: u64) -> String {
        format!(
            "  {what:<22}  {:.3} CPU s per million events, {} wall, {:.0} MiB peak",
            self.per_million(events),
            seconds(self.wall),
            self.peak_mib()
        )
    }
}

/// Runs a program to its end; what it says goes to `run.log` in `folder`, and into the error if it fails.
pub(super) fn run(what: &str, folder: &Path, mut command: Command) -> Result<Cost, Failure> {
    let log = doing("run.log", File::create(folder.join("run.log")))?;
    let out = doing("run.log", log.try_clone())?;
    let begun = Instant::now();
    let child = command.stdin(Stdio::null()).stdout(out).stderr(log).spawn();
    let mut child = doing(&format!("{what} cannot be started"), child)?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let mut peak_kib = 0;
    let cpu_s = loop {
        if let Some(kib) = fs::read_to_string(proc.join("status")).ok().and_then(|s| peak_of(&s)) {
            peak_kib = kib.max(peak_kib);
        }
        match fs::read_to_string(proc.join("stat")).ok().and_then(|s| cpu_of(&s)) {
            Some((false, _)) => std::thread::sleep(LOOK_EVERY),
            Some((true, cpu_s)) => break cpu_s,
            None => return Err(Failure::new(format!("{what}: no figures in {}", proc.display()))),
        }
    };
    let wall = begun.elapsed();
    let status = doing(what, child.wait())?;
    if !status.success() {
        let said = fs::read_to_string(folder.join("run.log")).unwrap_or_default();
        let mut failure = Failure::of(what, status);
        failure.message.push_str(&format!("\n{}", said.trim_end()));
        return Err(failure);
    }
    Ok(Cost { cpu_s, wall, peak_kib })
}

/// Peak of resident memory in `/proc/PID/status`; gone when the process has ended.
fn peak_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

/// Whether the process has ended, and its CPU seconds, in `/proc/PID/stat`.
fn cpu_of(stat: &str) -> Option<(bool, f64)> {
    // The name in parentheses may hold anything.
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok());
    Some((ended, (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_as_the_kernel_writes_them() {
        let stat = "77 (a) b (c)) Z 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0";
        assert_eq!(cpu_of(stat), Some((true, 3.0)));
        assert_eq!(cpu_of(&stat.replace(" Z ", " S ")), Some((false, 3.0)));
        assert_eq!(cpu_of("77 (cut"), None);
        assert_eq!(peak_of("Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n"), Some(1234));
        assert_eq!(peak_of("State:\tZ (zombie)\n"), None);
    }
}
