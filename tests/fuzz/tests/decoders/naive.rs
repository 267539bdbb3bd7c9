//! The formats once more, straight from what they say of themselves, slowly and without a line of the decoders.

use std::collections::BTreeMap;

/// What a value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Text,
    Number,
    Bool,
    Structure,
}

/// A declared value.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) kind: Kind,
    pub(crate) bytes: Vec<u8>,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?}", self.kind, String::from_utf8_lossy(&self.bytes))
    }
}

fn text(bytes: &[u8]) -> Option<Value> {
    (!bytes.is_empty()).then(|| Value { kind: Kind::Text, bytes: bytes.to_vec() })
}

/// A record and where it begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

/// A file cut into records: at line ends, for CSV at those outside quotes. The header is the first record.
pub(crate) fn cut(quotes: bool, header: bool, bytes: &[u8]) -> (Option<Vec<u8>>, Vec<Cut>) {
    let (mut all, mut start, mut quoted) = (Vec::new(), 0, false);
    let mut push = |from: usize, to: usize, ended: bool| {
        let line = &bytes[from..to];
        // A carriage return is part of a line end, not of what is left at the end.
        let line = if ended { line.strip_suffix(b"\r").unwrap_or(line) } else { line };
        if !line.is_empty() {
            all.push(Cut { offset: from as u64, bytes: line.to_vec() });
        }
    };
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'"' if quotes => quoted = !quoted,
            b'\n' if !quoted => {
                push(start, at, true);
                start = at + 1;
            }
            _ => {}
        }
    }
    push(start, bytes.len(), false);
    let bom = "\u{feff}".as_bytes();
    let mut head = None;
    if header && !all.is_empty() {
        let first = all.remove(0).bytes;
        head = Some(first.strip_prefix(bom).unwrap_or(&first).to_vec());
    }
    // The same mark before a first record, which keeps its place.
    if let Some(first) = all.first_mut().filter(|f| f.offset == 0)
        && let Some(rest) = first.bytes.strip_prefix(bom)
    {
        first.bytes = rest.to_vec();
        if first.bytes.is_empty() {
            all.remove(0);
        }
    }
    (head, all)
}

/// Whether there is an escape of one half of a pair.
pub(crate) fn has_surrogates(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|w| {
        w[..2] == *b"\\u"
            && matches!(w[2], b'd' | b'D')
            && matches!(w[3], b'8'..=b'9' | b'a'..=b'f' | b'A'..=b'F')
    })
}

/// A tree of JSON; leaves and nodes keep how they were written.
enum Json {
    Null,
    Text(Vec<u8>),
    Number(Vec<u8>),
    Bool(Vec<u8>),
    List(Vec<u8>, Vec<Json>),
    Object(Vec<u8>, BTreeMap<Vec<u8>, Json>),
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        while matches!(self.text.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }
    fn byte(&mut self, want: u8) -> Option<()> {
        (self.text.get(self.at) == Some(&want)).then(|| self.at += 1)
    }
    fn literal(&mut self, want: &[u8]) -> Option<()> {
        self.text[self.at..].starts_with(want).then(|| self.at += want.len())
    }
    fn digits(&mut self) -> Option<()> {
        let from = self.at;
        while self.text.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        (self.at > from).then_some(())
    }
    fn number(&mut self) -> Option<()> {
        let _ = self.byte(b'-');
        if self.byte(b'0').is_none() {
            self.digits()?;
        }
        if self.byte(b'.').is_some() {
            self.digits()?;
        }
        if self.byte(b'e').or_else(|| self.byte(b'E')).is_some() {
            let _ = self.byte(b'+').or_else(|| self.byte(b'-'));
            self.digits()?;
        }
        Some(())
    }
    fn hex(&mut self) -> Option<u32> {
        let digits = std::str::from_utf8(self.text.get(self.at..self.at + 4)?).ok()?;
        let all_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        self.at += 4;
        u32::from_str_radix(digits, 16).ok().filter(|_| all_hex)
    }
    fn string(&mut self) -> Option<Vec<u8>> {
        self.byte(b'"')?;
        let mut out = Vec::new();
        loop {
            let b = *self.text.get(self.at)?;
            self.at += 1;
            match b {
                b'"' => return Some(out),
                0..=0x1f => return None,
                b'\\' => {
                    let escaped = *self.text.get(self.at)?;
                    self.at += 1;
                    out.push(match escaped {
                        b'"' | b'\\' | b'/' => escaped,
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'u' => {
                            let c = char::from_u32(self.hex()?)?;
                            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                            continue;
                        }
                        _ => return None,
                    });
                }
                b => out.push(b),
            }
        }
    }
    fn value(&mut self) -> Option<Json> {
        self.space();
        let from = self.at;
        let raw = |p: &Self| p.text[from..p.at].to_vec();
        match self.text.get(self.at)? {
            b'n' => self.literal(b"null").map(|()| Json::Null),
            b't' => self.literal(b"true").map(|()| Json::Bool(raw(self))),
            b'f' => self.literal(b"false").map(|()| Json::Bool(raw(self))),
            b'"' => self.string().map(Json::Text),
            b'[' => {
                self.at += 1;
                let mut all = Vec::new();
                self.space();
                if self.byte(b']').is_none() {
                    loop {
                        all.push(self.value()?);
                        self.space();
                        if self.byte(b',').is_none() {
                            break;
                        }
                    }
                    self.byte(b']')?;
                }
                Some(Json::List(raw(self), all))
            }
            b'{' => {
                self.at += 1;
                let mut all = BTreeMap::new();
                self.space();
                if self.byte(b'}').is_none() {
                    loop {
                        self.space();
                        let name = self.string()?;
                        self.space();
                        self.byte(b':')?;
                        all.insert(name, self.value()?);
                        self.space();
                        if self.byte(b',').is_none() {
                            break;
                        }
                    }
                    self.byte(b'}')?;
                }
                Some(Json::Object(raw(self), all))
            }
            _ => self.number().map(|()| Json::Number(raw(self))),
        }
    }
}

/// A member name, or a JSON pointer (RFC 6901).
fn find<'j>(root: &'j Json, path: &str) -> Option<&'j Json> {
    let tokens: Vec<String> = match path.strip_prefix('/') {
        None => vec![path.to_owned()],
        Some(rest) => rest.split('/').map(|t| t.replace("~1", "/").replace("~0", "~")).collect(),
    };
    tokens.iter().try_fold(root, |at, token| match at {
        Json::Object(_, all) => all.get(token.as_bytes()),
        Json::List(_, all) => all.get(token.parse::<usize>().ok()?),
        _ => None,
    })
}

pub(crate) fn json(record: &[u8], wanted: &[&str]) -> Option<Vec<Option<Value>>> {
    std::str::from_utf8(record).ok()?;
    let mut p = Parser { text: record, at: 0 };
    let root = p.value()?;
    p.space();
    if p.at < record.len() || !matches!(root, Json::Object(..)) {
        return None;
    }
    let value = |j: &Json| match j {
        Json::Null => None,
        Json::Text(t) => text(t),
        Json::Number(n) => Some(Value { kind: Kind::Number, bytes: n.clone() }),
        Json::Bool(b) => Some(Value { kind: Kind::Bool, bytes: b.clone() }),
        Json::List(raw, _) | Json::Object(raw, _) => {
            Some(Value { kind: Kind::Structure, bytes: raw.clone() })
        }
    };
    Some(wanted.iter().map(|path| find(&root, path).and_then(value)).collect())
}

/// RFC 4180, and what it leaves open: a quote inside of an unquoted cell is text, and so is what follows a closing one.
fn csv_cells(record: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (mut cells, mut cell) = (Vec::new(), Vec::new());
    let (mut at, mut begins) = (0, true);
    while at < record.len() {
        match record[at] {
            b'"' if begins => {
                at += 1;
                loop {
                    match (record.get(at)?, record.get(at + 1)) {
                        (b'"', Some(b'"')) => {
                            cell.push(b'"');
                            at += 2;
                        }
                        (b'"', _) => break,
                        (b, _) => {
                            cell.push(*b);
                            at += 1;
                        }
                    }
                }
                begins = false;
            }
            b',' => {
                cells.push(std::mem::take(&mut cell));
                begins = true;
            }
            b'\n' => return None,
            b => {
                cell.push(b);
                begins = false;
            }
        }
        at += 1;
    }
    cells.push(cell);
    Some(cells)
}

fn columns(cells: &[Vec<u8>], header: &[Vec<u8>], wanted: &[&str]) -> Vec<Option<Value>> {
    let column = |name: &&str| header.iter().position(|h| h == name.as_bytes());
    wanted.iter().map(|name| column(name).and_then(|c| text(&cells[c]))).collect()
}

/// Header decoders pass over a mark of their own accord: not all of their callers have cut the file themselves.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    std::str::from_utf8(bytes).ok().map(str::as_bytes)
}

pub(crate) fn csv(record: &[u8], header: &[u8], wanted: &[&str]) -> Option<Vec<Option<Value>>> {
    std::str::from_utf8(record).ok()?;
    let (header, cells) = (csv_cells(self::header(header)?)?, csv_cells(record)?);
    (cells.len() == header.len()).then(|| columns(&cells, &header, wanted))
}

pub(crate) fn tsv(record: &[u8], header: &[u8], wanted: &[&str]) -> Option<Vec<Option<Value>>> {
    std::str::from_utf8(record).ok()?;
    let split = |r: &[u8]| r.split(|b| *b == b'\t').map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (header, cells) = (split(self::header(header)?), split(record));
    let surplus = cells.get(header.len()..)?;
    surplus.iter().all(Vec::is_empty).then(|| columns(&cells, &header, wanted))
}

/// host ident user [time] "request" status bytes "referer" "agent"
pub(crate) fn combined(record: &[u8]) -> Option<Vec<Option<Value>>> {
    let line = std::str::from_utf8(record).ok()?;
    let word = |s: &'_ str| -> Option<(String, String)> {
        let (w, rest) = s.split_once(' ')?;
        (!w.is_empty()).then(|| (w.to_owned(), rest.to_owned()))
    };
    let (host, rest) = word(line)?;
    let (ident, rest) = word(&rest)?;
    // The user has a character at least, then ` [`.
    let open = (1..rest.len()).find(|at| rest.is_char_boundary(*at) && rest[*at..].starts_with(" ["))?;
    let (user, rest) = (rest[..open].to_owned(), &rest[open + 2..]);
    let (time, rest) = rest.split_once(']').filter(|(t, _)| !t.is_empty())?;
    let (request, rest) = quoted(rest.strip_prefix(" \"")?, false)?;
    let rest = rest.strip_prefix(' ')?;
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    if digits(rest) != 3 {
        return None;
    }
    let (status, rest) = rest.split_at(3);
    let rest = rest.strip_prefix(' ')?;
    let n = if rest.starts_with('-') { 1 } else { digits(rest) };
    let (bytes, rest) = rest.split_at(n);
    if n == 0 {
        return None;
    }
    let (mut referer, mut agent) = (String::new(), String::new());
    if !rest.is_empty() {
        let (r, rest) = quoted(rest.strip_prefix(" \"")?, false)?;
        let (a, rest) = quoted(rest.strip_prefix(" \"")?, true)?;
        if !rest.is_empty() {
            return None;
        }
        (referer, agent) = (r, a);
    }
    let parts: Vec<&str> = request.split(' ').collect();
    let (method, url, protocol) = match parts[..] {
        [m, u, p] if !m.is_empty() && !u.is_empty() && !p.is_empty() => (m, u, p),
        _ => ("", request.as_str(), ""),
    };
    let plain = |s: &str| text(s.as_bytes()).filter(|_| s != "-");
    let always = |s: &str| text(s.as_bytes());
    let escaped = |s: &str| if s == "-" { None } else { text(&unescape(s)) };
    Some(vec![
        always(&host),
        plain(&ident),
        plain(&user),
        always(time),
        escaped(method),
        escaped(url),
        escaped(protocol),
        always(status),
        plain(bytes),
        escaped(&referer),
        escaped(&agent),
    ])
}

/// The inside of quotes, and what follows them. The last may lack its closing one.
fn quoted(s: &str, last: bool) -> Option<(String, &str)> {
    let mut chars = s.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((s[..at].to_owned(), &s[at + 1..])),
            '\\' => drop(chars.next()),
            _ => {}
        }
    }
    last.then(|| (s.to_owned(), ""))
}

fn unescape(s: &str) -> Vec<u8> {
    let mut out = String::new();
    let mut chars = s.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\\', Some(next @ ('"' | '\\'))) => {
                out.push(*next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out.into_bytes()
}

/// Milliseconds of a JSON-like number of which so many make a second, cut off toward the past: by whole decimals, as at
/// school. None if it is no number, or one too long to be reckoned with here.
pub(crate) fn milliseconds(number: &[u8], per_second: i128) -> Option<i128> {
    let s = std::str::from_utf8(number).ok()?;
    let (negative, s) = s.strip_prefix('-').map_or((false, s), |rest| (true, rest));
    let (mantissa, exponent) = match s.split_once(['e', 'E']) {
        Some((m, e)) => {
            let bare = e.strip_prefix(['+', '-']).unwrap_or(e);
            if bare.is_empty() || !bare.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (m, e.parse::<i32>().ok()?)
        }
        None => (s, 0),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((w, f)) if !f.is_empty() => (w, f),
        Some(_) => return None,
        None => (mantissa, ""),
    };
    let all = format!("{whole}{fraction}");
    if whole.is_empty() || !all.bytes().all(|b| b.is_ascii_digit()) || all.len() > 22 || exponent.abs() > 10 {
        return None;
    }
    let digits: i128 = all.parse().ok()?;
    let digits = if negative { -digits } else { digits };
    // digits · 10^(exponent − fraction) · 1000 / per_second
    let power = exponent - fraction.len() as i32;
    let (mut up, mut down) = (1_000, per_second);
    for _ in 0..power.abs() {
        if power > 0 {
            up *= 10;
        } else {
            down *= 10;
        }
    }
    // Both are powers of ten: what they share would only make the numbers too large.
    while up % 10 == 0 && down % 10 == 0 {
        up /= 10;
        down /= 10;
    }
    Some(digits.checked_mul(up)?.div_euclid(down))
}

/// `dd/Mon/yyyy:HH:MM:SS +hhmm`, days counted one by one.
pub(crate) fn clf(text: &[u8]) -> Option<i64> {
    let s = std::str::from_utf8(text).ok().filter(|s| s.len() == 26 && s.is_ascii())?;
    let number = |from: usize, to: usize| {
        let digits = &s[from..to];
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().unwrap())
    };
    let separators = [(2, '/'), (6, '/'), (11, ':'), (14, ':'), (17, ':'), (20, ' ')];
    if separators.iter().any(|(at, c)| !s[*at..].starts_with(*c)) {
        return None;
    }
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|m| *m == &s[3..6])?;
    let (day, year) = (number(0, 2)?, number(7, 11)?);
    let leap = |y: i64| i64::from((y % 4 == 0 && y % 100 != 0) || y % 400 == 0);
    let lengths = |y: i64| [31, 28 + leap(y), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    if day < 1 || day > lengths(year)[month] {
        return None;
    }
    let years: i64 = if year >= 1970 {
        (1970..year).map(|y| 365 + leap(y)).sum()
    } else {
        -(year..1970).map(|y| 365 + leap(y)).sum::<i64>()
    };
    let days = years + lengths(year)[..month].iter().sum::<i64>() + day - 1;
    let (hour, minute, second) = (number(12, 14)?, number(15, 17)?, number(18, 20)?);
    let (off_hours, off_minutes) = (number(22, 24)?, number(24, 26)?);
    let sign = match &s[21..22] {
        "+" => 1,
        "-" => -1,
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 60 || off_hours > 25 || off_minutes > 59 {
        return None;
    }
    let of_day = (hour * 60 + minute) * 60 + second.min(59) - sign * (off_hours * 60 + off_minutes) * 60;
    let ms = (days * 86_400 + of_day) * 1_000;
    (-62_135_596_800_000..253_402_300_800_000).contains(&ms).then_some(ms)
}
