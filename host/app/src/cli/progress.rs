//! What a run shows while it goes on: on a terminal a line a pipeline that renews itself, else one every ten seconds.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::text;
use crate::journal::Line;
use crate::progress::Progress;

/// How often a terminal's lines are renewed: fast enough to look alive.
const REDRAW: Duration = Duration::from_millis(200);
/// How often a log gets a line.
const LOG: Duration = Duration::from_secs(10);
/// Characters of one line that are shown: a plugin's line is cut to 1 KiB before.
const LINE_CHARS_MAX: usize = 2048;
/// Over which time events per second are measured.
const RATE: Duration = Duration::from_secs(1);

/// A pipeline whose input has an end.
const BAR: &str = "{bar:20} {msg}";

/// Shows progress until it is dropped.
pub(super) struct Watch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to show, unless `quiet`. `stdout_used`: a sink writes there, so a terminal that shows both gets
    /// plain lines.
    pub(super) fn start(
        list: &[Arc<Progress>],
        lines: Receiver<Line>,
        quiet: bool,
        stdout_used: bool,
    ) -> Watch {
        if quiet {
            return Watch { stop: None, thread: None };
        }
        let terminal = io::stderr().is_terminal() && !(stdout_used && io::stdout().is_terminal());
        let (stop, stopped) = bounded::<()>(0);
        let mut meters: Vec<Meter> = list.iter().map(Meter::new).collect();
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let bars = if terminal { Bars::new(&meters) } else { Bars::default() };
            let every = if terminal { REDRAW } else { LOG };
            let mut lines = lines;
            let mut next = Instant::now() + every;
            loop {
                select! {
                    recv(lines) -> line => match line {
                        Ok(line) => {
                            bars.suspend(|| tell(&line));
                            if Instant::now() < next {
                                continue;
                            }
                        }
                        // All pipelines are gone, and with them their ends of the queue.
                        Err(_) => {
                            lines = never();
                            continue;
                        }
                    },
                    recv(stopped) -> _ => break,
                    default(next.saturating_duration_since(Instant::now())) => {}
                }
                next = Instant::now() + every;
                let now_ms = text::now_ms();
                if terminal {
                    bars.redraw(&mut meters, now_ms);
                } else {
                    log(&mut meters, now_ms);
                }
            }
            bars.clear();
            lines.try_iter().for_each(|line| tell(&line));
            tell_dropped(&meters);
        });
        Watch { stop: Some(stop), thread: thread.ok() }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The thread waits for this end of the channel to go away.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed; the run itself is not concerned.
            let _ = thread.join();
        }
    }
}

/// A pipeline's or a plugin's line. What plugins say is foreign text.
fn tell(line: &Line) {
    let text = text::foreign(&line.text, LINE_CHARS_MAX);
    let mut err = anstream::stderr().lock();
    // Nobody is left to be told that stderr is gone.
    let pipeline = line.pipeline.as_deref().unwrap_or("tidemill");
    let _ = match &line.plugin {
        Some(plugin) => writeln!(err, "{pipeline}: plugin {plugin}: {}: {text}", line.level),
        None => writeln!(err, "{pipeline}: {text}"),
    };
}

fn tell_dropped(meters: &[Meter]) {
    let mut err = anstream::stderr().lock();
    for of in meters.iter().map(|m| &m.of) {
        let dropped = of.lines_dropped.load(Relaxed);
        if dropped > 0 {
            let _ =
                writeln!(err, "{}: {} of its plugins not shown", of.pipeline, text::counted(dropped, "line"));
        }
    }
}

fn log(meters: &mut [Meter], now_ms: i64) {
    let mut err = anstream::stderr().lock();
    for meter in meters {
        // Nobody is left to be told that stderr is gone.
        let _ = writeln!(err, "{}", meter.line(now_ms));
    }
}

#[derive(Default)]
struct Bars {
    all: MultiProgress,
    each: Vec<ProgressBar>,
}

impl Bars {
    fn new(meters: &[Meter]) -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        let each = meters.iter().map(|_| all.add(ProgressBar::new_spinner())).collect();
        Bars { all, each }
    }

    fn redraw(&self, meters: &mut [Meter], now_ms: i64) {
        for (bar, meter) in self.each.iter().zip(meters) {
            // How much there is to read is known once the files are listed.
            let total = meter.of.bytes_total.load(Relaxed);
            if total > 0 && bar.length().is_none() {
                bar.set_length(total);
                if let Ok(style) = ProgressStyle::with_template(BAR) {
                    bar.set_style(style);
                }
            }
            bar.set_position(meter.of.bytes_read.load(Relaxed));
            bar.set_message(meter.line(now_ms));
            bar.tick();
        }
    }

    /// Lets something else be written above the bars.
    fn suspend(&self, write: impl FnOnce()) {
        self.all.suspend(write);
    }

    fn clear(&self) {
        for bar in &self.each {
            bar.finish_and_clear();
        }
        // What stays on the screen is a matter of looks.
        let _ = self.all.clear();
    }
}

/// One pipeline's numbers, and how fast they grow.
struct Meter {
    of: Arc<Progress>,
    since: Instant,
    events: u64,
    rate: Option<f64>,
}

impl Meter {
    fn new(of: &Arc<Progress>) -> Meter {
        Meter { of: of.clone(), since: Instant::now(), events: of.events.load(Relaxed), rate: None }
    }

    fn line(&mut self, now_ms: i64) -> String {
        let elapsed = self.since.elapsed();
        if elapsed >= RATE {
            let events = self.of.events.load(Relaxed);
            // The first totals of a recovered pipeline come in one go: they were not read just now.
            let grown = if self.events == 0 && self.of.epoch.load(Relaxed) == 0 { 0 } else { self.events };
            #[expect(clippy::cast_precision_loss, reason = "shown to three digits")]
            let rate = events.saturating_sub(grown) as f64 / elapsed.as_secs_f64();
            (self.rate, self.events, self.since) = (Some(rate), events, Instant::now());
        }
        line(&self.of, self.rate, now_ms)
    }
}

/// A pipeline's numbers as one line.
fn line(p: &Progress, rate: Option<f64>, now_ms: i64) -> String {
    let n = |a: &std::sync::atomic::AtomicU64| text::count(a.load(Relaxed));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is finite and not negative"
    )]
    let rate = rate.map_or(String::new(), |r| format!(" ({}/s)", text::count(r.round() as u64)));
    if let Some(word) = p.halted() {
        return format!("{}: {word} at {} events, {} sessions", p.pipeline, n(&p.events), n(&p.finals));
    }
    let fresh = match p.sealed_at_ms.load(Relaxed) {
        0 => "nothing delivered yet".to_owned(),
        at => format!("fresh {}", text::duration(text::between(at, now_ms))),
    };
    let read = match (p.bytes_read.load(Relaxed), p.bytes_total.load(Relaxed)) {
        (_, 0) => String::new(),
        // A file may have grown since it was listed.
        (read, total) => {
            let percent = u128::from(read.min(total)) * 100 / u128::from(total);
            format!(" {percent} % of {},", BinaryBytes(total))
        }
    };
    let waiting = match p.unresolved.load(Relaxed) {
        0 => String::new(),
        n => format!(" {} waiting for lookups,", text::count(n)),
    };
    format!(
        "{}:{read} {} events{rate}, {} sessions,{waiting} {} open, {} late, {} dead, watermark {}, {fresh}",
        p.pipeline,
        n(&p.events),
        n(&p.finals),
        n(&p.live_keys),
        n(&p.late),
        n(&p.dead),
        text::instant(p.watermark_ms.load(Relaxed)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_it_all() {
        let p = Progress::new("visits", crate::journal::Journal::new().0);
        p.events.store(12_345, Relaxed);
        p.finals.store(7, Relaxed);
        p.late.store(1, Relaxed);
        p.dead.store(2, Relaxed);
        p.live_keys.store(3, Relaxed);
        assert_eq!(
            line(&p, Some(1000.4), 0),
            "visits: 12,345 events (1,000/s), 7 sessions, 3 open, 1 late, 2 dead, watermark none yet, \
             nothing delivered yet"
        );
        p.bytes_read.store(3 << 19, Relaxed);
        p.bytes_total.store(4 << 20, Relaxed);
        assert!(line(&p, None, 0).starts_with("visits: 37 % of 4.00 MiB, 12,345 events, 7"));
        p.bytes_read.store(5 << 20, Relaxed);
        assert!(line(&p, None, 0).contains(" 100 % of "), "a file that has grown is not read beyond its end");
        p.unresolved.store(4, Relaxed);
        assert!(line(&p, None, 0).contains("7 sessions, 4 waiting for lookups, 3 open"));
        p.watermark_ms.store(1_431_857_103_000, Relaxed);
        p.sealed_at_ms.store(1_000, Relaxed);
        assert!(line(&p, None, 1_400).ends_with("watermark 2015-05-17T10:05:03Z, fresh 400ms"));
        p.halt("SUSPENDED", "why", false);
        assert_eq!(line(&p, None, 1_400), "visits: SUSPENDED at 12,345 events, 7 sessions");
    }
}
