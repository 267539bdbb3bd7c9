//! The machine: what it is, and whether it is quiet enough that figures mean something.

use crate::error::{Doing, Failure, Outcome};
use std::fs;
use std::time::Duration;

/// The part of its time that the machine may be busy with something else.
const BUSY_MAX: f64 = 0.10;
/// How long its time is looked at.
const LOOK_FOR: Duration = Duration::from_secs(2);

/// As `cores x model, memory`.
pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or("", |(_, m)| m.trim());
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
    format!("{} x {model}, {} GiB", cores(), kib.unwrap_or(0).div_ceil(1 << 20))
}

/// Processor cores that this process may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Runnable processes over the last minute.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

/// Refuses if something else runs. The load average still remembers the build that came before, so what is looked at is the
/// processors' time just now.
pub(crate) fn must_be_quiet() -> Outcome<()> {
    let times = || fs::read_to_string("/proc/stat").doing("/proc/stat");
    let before = times()?;
    std::thread::sleep(LOOK_FOR);
    let busy = busy(&before, &times()?).ok_or_else(|| Failure::new("/proc/stat cannot be read"))?;
    if busy <= BUSY_MAX {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "the machine is {:.0} % busy with something else (load average {:.2}): figures would mean little. Wait until it is \
         quiet, or measure all the same with --force, which is noted in the results",
        100.0 * busy,
        load_average()
    )))
}

/// The part of the processors' time that was not idle between two readings of `/proc/stat`.
fn busy(before: &str, after: &str) -> Option<f64> {
    let times = |text: &str| -> Option<(f64, f64)> {
        let line = text.lines().find_map(|l| l.strip_prefix("cpu "))?;
        let times: Vec<f64> = line.split_whitespace().map_while(|f| f.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests' time is part of user's.
        let all = times.get(..8)?;
        Some((all.iter().sum(), all[3] + all[4]))
    };
    let ((all_then, idle_then), (all_now, idle_now)) = (times(before)?, times(after)?);
    let all = all_now - all_then;
    (all > 0.0).then(|| 1.0 - (idle_now - idle_then) / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_is_not_idle_is_busy() {
        let before = "cpu  100 0 100 800 0 0 0 0 9 9\ncpu0 1 1 1 1\n";
        let after = "cpu  120 0 110 860 5 3 1 1 99 99\ncpu0 1 1 1 1\n";
        assert!((busy(before, after).unwrap() - 0.35).abs() < 1e-9);
        assert_eq!(busy(before, before), None, "no time has passed");
        assert_eq!(busy("cpu 1 2", after), None);
    }
}
