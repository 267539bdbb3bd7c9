//! A program from its start to its end, and what it costs: CPU time and memory as `/proc` tells them, so Linux only. A child
//! that has ended but was not waited for still shows its CPU time, and its peak of memory only ever rises.

use crate::error::{Doing, Failure, Outcome};
use crate::figures::of_count;
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
pub(crate) struct Cost {
    /// CPU seconds, of all threads, the kernel's too.
    pub(crate) cpu_s: f64,
    /// From start to end.
    pub(crate) wall_s: f64,
    /// Most resident memory.
    pub(crate) peak_mib: f64,
}

/// Runs a program to its end; what it says goes to `log`, and into the error if it fails.
pub(crate) fn run(what: &str, log: &Path, mut command: Command) -> Outcome<Cost> {
    let said = File::create(log).doing(log.display())?;
    let out = said.try_clone().doing(log.display())?;
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(said)
        .spawn()
        .doing(format_args!("{what} cannot be started"))?;
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let mut peak_kib = 0;
    let cpu_s = loop {
        if let Some(kib) = fs::read_to_string(proc.join("status")).ok().and_then(|s| kib_of(&s, "VmHWM:")) {
            peak_kib = kib.max(peak_kib);
        }
        match fs::read_to_string(proc.join("stat")).ok().and_then(|s| cpu_of(&s)) {
            Some((false, _)) => std::thread::sleep(LOOK_EVERY),
            Some((true, cpu_s)) => break cpu_s,
            None => return Err(Failure::new(format!("{what}: no figures in {}", proc.display()))),
        }
    };
    let wall_s = begun.elapsed().as_secs_f64();
    let status = child.wait().doing(what)?;
    if !status.success() {
        let said = fs::read_to_string(log).unwrap_or_default();
        return Err(Failure::new(format!("{what}: {status}\n{}", said.trim_end())));
    }
    Ok(Cost { cpu_s, wall_s, peak_mib: of_count(peak_kib) / 1024.0 })
}

/// CPU seconds that a process has taken until now.
pub(crate) fn cpu_s(pid: u32) -> Outcome<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).doing("its CPU time")?;
    cpu_of(&stat).map(|(_, s)| s).ok_or_else(|| Failure::new("its CPU time cannot be read"))
}

/// Resident memory of a process now, bytes.
pub(crate) fn resident_bytes(pid: u32) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).doing("its memory")?;
    let kib = kib_of(&status, "VmRSS:").ok_or_else(|| Failure::new("its memory cannot be read"))?;
    Ok(of_count(kib) * 1024.0)
}

/// A size in `/proc/PID/status`; gone when the process has ended.
fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
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
        let status = "Name:\tx\nVmHWM:\t    1234 kB\nVmRSS:\t 1 kB\n";
        assert_eq!((kib_of(status, "VmHWM:"), kib_of(status, "VmRSS:")), (Some(1234), Some(1)));
        assert_eq!(kib_of("State:\tZ (zombie)\n", "VmHWM:"), None);
    }
}
