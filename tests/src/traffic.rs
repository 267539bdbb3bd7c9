//! Made-up click streams from a seed: shop traffic with hot keys, and stand-ins for the real logs with their quirks.
//!
//! Same seed, same bytes: a failing case is named by its seed alone. The generator of random numbers is our own, so
//! that no update of a library changes what a seed means.

use std::fmt::Write;

/// A xorshift64* generator.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// From a seed; any value will do.
    #[must_use]
    pub fn new(seed: u64) -> Rng {
        // Neighbouring seeds must not give neighbouring streams, and the state must not be zero.
        let mut r = Rng((seed ^ 0x9E37_79B9_7F4A_7C15).wrapping_mul(0xBF58_476D_1CE4_E5B9) | 1);
        for _ in 0..4 {
            r.next();
        }
        r
    }
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n.max(1))) >> 64) as u64
    }
    /// Whether an event of chance 1 in `n` happens.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    /// A rank below `n` by Zipf's law with exponent 1: low ranks are hot.
    pub fn zipf(&mut self, n: u64) -> u64 {
        let u = self.below(1 << 32) as f64 / (1u64 << 32) as f64;
        (((n as f64) + 1.0).powf(u) as u64).clamp(1, n) - 1
    }
    /// Puts a slice into random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// A line with the event time that decides when it may arrive.
#[derive(Clone, Debug)]
pub struct Timed {
    /// ms since the Unix epoch.
    pub time: i64,
    /// The line without its end.
    pub line: String,
}

/// 2024-05-01T00:00:00Z: all made-up traffic begins here.
pub const START_MS: i64 = 1_714_521_600_000;

/// Shop traffic.
#[derive(Clone, Copy, Debug)]
pub struct Shop {
    /// Decides everything.
    pub seed: u64,
    /// How many events.
    pub events: u64,
    /// How many users; activity by Zipf's law.
    pub users: u64,
    /// Mean distance of events, ms.
    pub step_ms: u64,
    /// One line in so many is no event; 0: none.
    pub invalid_every: u64,
}

impl Shop {
    /// The lines in order of time.
    #[must_use]
    pub fn lines(&self) -> Vec<Timed> {
        let mut r = Rng::new(self.seed);
        let mut time = START_MS;
        let mut out = Vec::with_capacity(self.events as usize);
        for n in 0..self.events {
            time += r.below(2 * self.step_ms + 1) as i64;
            let user = r.zipf(self.users);
            let kind = match r.below(40) {
                0 => "login",
                1 => "purchase",
                2..6 => "cart",
                _ => "view",
            };
            let mut line = String::with_capacity(96);
            let page = r.below(5000);
            let _ = write!(
                line,
                r#"{{"id":"e{n}","user":"u{user}","ts":{time},"type":"{kind}","url":"/p/{page}"}}"#
            );
            out.push(Timed { time, line });
            if self.invalid_every > 0 && r.one_in(self.invalid_every) {
                let line = match r.below(6) {
                    0 => format!(r#"{{"id":"x{n}","user":"u1","ts":{time},"#),
                    1 => format!(r#"{{"id":"x{n}","ts":{time},"type":"view"}}"#),
                    2 => format!(r#"{{"id":"x{n}","user":"","ts":{time}}}"#),
                    3 => format!(r#"{{"id":"x{n}","user":"u1","ts":null}}"#),
                    4 => format!(r#"{{"id":null,"user":"u1","ts":{time}}}"#),
                    _ => format!("<html>{n}</html>"),
                };
                out.push(Timed { time, line });
            }
        }
        out
    }
}

/// Visits of a shop with campaigns, checkouts and payments; some checkouts come without any page before.
#[derive(Clone, Copy, Debug)]
pub struct Visits {
    /// Decides everything.
    pub seed: u64,
    /// How many events.
    pub events: u64,
    /// How many users; activity by Zipf's law.
    pub users: u64,
    /// Mean distance of events, ms.
    pub step_ms: u64,
    /// One line in so many is no event.
    pub invalid_every: u64,
}

impl Visits {
    /// The lines in order of time.
    #[must_use]
    pub fn lines(&self) -> Vec<Timed> {
        let mut r = Rng::new(self.seed);
        let mut time = START_MS;
        let mut out = Vec::with_capacity(self.events as usize);
        for n in 0..self.events {
            time += r.below(2 * self.step_ms + 1) as i64;
            let user = r.zipf(self.users);
            let kind = match r.below(20) {
                0..9 => "page_view",
                9..12 => "checkout",
                12 | 13 => "purchase",
                _ => "scroll",
            };
            let mut line = format!(r#"{{"id":"e{n}","user":"u{user}","ts":{time},"type":"{kind}""#);
            if r.one_in(6) {
                let _ = write!(line, r#","campaign":"c{}""#, r.below(4));
            }
            if kind == "purchase" && !r.one_in(4) {
                let _ = write!(line, r#","amount":{}.{:02}"#, r.below(300), r.below(100));
            }
            line.push('}');
            out.push(Timed { time, line });
            if r.one_in(self.invalid_every) {
                out.push(Timed { time, line: format!(r#"{{"id":"x{n}","ts":{time},"type":"page_view"}}"#) });
            }
        }
        out
    }
}

/// Clicks of the shape of the yardstick's: out of order by up to 9.9 s, one in two hundred invalid in one of four ways.
#[must_use]
pub fn clicks(seed: u64, events: u64) -> Vec<u8> {
    const KINDS: [&str; 10] = [
        "page_view",
        "page_view",
        "page_view",
        "click",
        "scroll",
        "add_to_cart",
        "checkout",
        "purchase",
        "play",
        "pause",
    ];
    let mut r = Rng::new(seed);
    let mut out = Vec::with_capacity(events as usize * 150);
    for n in 0..events as i64 {
        let delay = match r.below(100) {
            0 => 5_000 + r.below(4_900),
            1..30 => r.below(5_000),
            _ => r.below(200),
        };
        // Whole half-seconds and few addresses, so that the order among events of one time shows.
        let ts = (START_MS + n - delay as i64) / 500 * 500;
        let fault = if r.one_in(200) { 1 + r.below(4) } else { 0 };
        let user =
            if fault == 1 { String::new() } else { format!(r#""user_id":"u{}","#, r.zipf(2 + events / 50)) };
        let ts = match fault {
            2 => r#""yesterday""#.to_owned(),
            3 => format!("-{ts}"),
            _ => ts.to_string(),
        };
        let kind = KINDS[r.below(10) as usize];
        let page = r.below(30);
        let mut line = format!(
            r#"{{"event_id":"{n:08x}",{user}"ts":{ts},"type":"{kind}","url":"https://shop.example.com/p/{page}","props":{{"q":"caf\u00e9 \"{page}\"","ab":["B",{page}]}}}}"#
        );
        if fault == 4 {
            let mut at = line.len() / 2 + r.below(line.len() as u64 / 2 - 1) as usize;
            while !line.is_char_boundary(at) {
                at -= 1;
            }
            line.truncate(at);
        }
        out.extend_from_slice(line.as_bytes());
        out.push(b'\n');
    }
    out
}

/// Lines joined into a file.
pub fn file_of<'a>(lines: impl IntoIterator<Item = &'a Timed>) -> Vec<u8> {
    let mut out = Vec::new();
    for l in lines {
        out.extend_from_slice(l.line.as_bytes());
        out.push(b'\n');
    }
    out
}

/// Gives each line, and a second copy of one in ten if `doubled`, a delay of at most `delay_ms` and sorts by arrival.
///
/// A line then comes at most `delay_ms` of event time behind any line before it: with a disorder of `delay_ms` nothing
/// is late, copies neither.
#[must_use]
pub fn delayed(lines: &[Timed], seed: u64, delay_ms: i64, doubled: bool) -> Vec<Timed> {
    let mut r = Rng::new(seed);
    let mut arrivals = Vec::with_capacity(lines.len() + lines.len() / 8);
    for l in lines {
        let copies = 1 + u64::from(doubled && r.one_in(10));
        for _ in 0..copies {
            arrivals.push((l.time + r.below(delay_ms as u64 + 1) as i64, arrivals.len(), l));
        }
    }
    arrivals.sort_by_key(|(at, n, _)| (*at, *n));
    arrivals.into_iter().map(|(_, _, l)| l.clone()).collect()
}

fn clf(ms: i64) -> String {
    // Made-up logs stay within the first days of one month.
    let s = (ms - START_MS) / 1000;
    format!("{:02}/May/2024:{:02}:{:02}:{:02} +0000", 1 + s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60)
}

/// Like the Apache trial log: only the minute hh:05 of each hour, shuffled within it, true repeats, one cut line.
#[must_use]
pub fn combined_log(seed: u64) -> Vec<u8> {
    let mut r = Rng::new(seed);
    let mut out = String::new();
    for hour in 0..60 {
        for n in 0..60 {
            let time = START_MS + hour * 3_600_000 + 300_000 + r.below(60) as i64 * 1000;
            let (a, b) = (r.zipf(40), r.zipf(20));
            let line = format!(
                "10.0.{a}.{b} - - [{}] \"GET /p/{} HTTP/1.1\" 200 512 \"-\" \"Agent \\\"{b}\\\"",
                clf(time),
                r.below(90)
            );
            let line = if hour == 7 && n == 7 { line } else { line + "\"" };
            for _ in 0..1 + u64::from(r.one_in(200)) {
                out += &line;
                out.push('\n');
            }
        }
    }
    out.into_bytes()
}

/// Like the NASA trial log: TSV with header, in order, two empty surplus cells.
#[must_use]
pub fn tsv_log(seed: u64) -> Vec<u8> {
    let mut r = Rng::new(seed);
    let mut out = String::from("host\tlogname\ttime\tmethod\turl\tresponse\tbytes\n");
    let mut time = START_MS / 1000;
    for _ in 0..4000 {
        time += r.below(5) as i64;
        let _ = writeln!(out, "host{}.net\t-\t{time}\tGET\t/p/{}\t200\t99\t\t", r.zipf(400), r.below(60));
    }
    out.into_bytes()
}

/// Like the usa.gov trial log: JSON of several shapes, light disorder, heartbeats without key and time.
#[must_use]
pub fn link_log(seed: u64) -> Vec<u8> {
    let mut r = Rng::new(seed);
    let mut out = String::new();
    for n in 0..3000i64 {
        let t = START_MS / 1000 + n - r.below(4) as i64;
        let (a, g) = (r.zipf(300), r.zipf(200));
        if n % 30 == 7 {
            let _ = writeln!(out, "{{\"_heartbeat_\":{t}}}");
        }
        let city = if r.one_in(3) { "\"cy\": \"D\\u00e4nvers\", " } else { "" };
        let _ = writeln!(
            out,
            "{{ \"a\": \"Mozilla\\/5.0 ({a})\", {city}\"g\": \"g{g}\", \"t\": {t}, \"ll\": [ 42.5, -70 ] }}"
        );
    }
    out.into_bytes()
}

/// A few cases of the JSON test suite: name as there, bytes.
#[must_use]
pub fn json_cases() -> Vec<(String, Vec<u8>)> {
    let cases: [(&str, &[u8]); 14] = [
        ("y_object_empty", b"{}"),
        ("y_string_escape", br#""\u00e4\"\\""#),
        ("y_number_exponent", b"1e-7"),
        ("y_array_nested", b"[[1],[null,true]]"),
        ("i_string_lone_surrogate", br#""\uD800""#),
        ("i_number_huge", b"1e9999"),
        ("n_array_trailing_comma", b"[1,]"),
        ("n_number_leading_zero", b"012"),
        ("n_number_plus", b"+1"),
        ("n_string_bad_escape", br#""\x00""#),
        ("n_string_control", b"\"a\tb\""),
        ("n_structure_no_data", b""),
        ("n_literal_nan", b"NaN"),
        ("n_object_unclosed", b"{\"a\":1"),
    ];
    cases.iter().map(|(n, b)| ((*n).to_owned(), b.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: Shop = Shop { seed: 3, events: 2000, users: 50, step_ms: 100, invalid_every: 20 };

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        assert_eq!(file_of(&SHOP.lines()), file_of(&SHOP.lines()));
        assert_ne!(file_of(&SHOP.lines()), file_of(&Shop { seed: 4, ..SHOP }.lines()));
    }

    #[test]
    fn delays_shuffle_but_keep_within_the_disorder() {
        let lines = SHOP.lines();
        let moved = delayed(&lines, 9, 5000, true);
        assert!(moved.len() > lines.len() * 21 / 20);
        let mut greatest = START_MS;
        let mut inversions = 0;
        for l in &moved {
            assert!(l.time >= greatest - 5000);
            inversions += usize::from(l.time < greatest);
            greatest = greatest.max(l.time);
        }
        assert!(inversions > moved.len() / 2);
    }
}
