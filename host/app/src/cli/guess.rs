//! What a log is, from its first records: its format, and which fields hold key and time.
//!
//! Invariant: a guess is offered only where nothing else fits as well; what is unclear is asked back.

use std::path::Path;

use tidemill_connect::ConnectError;
use tidemill_connect::format::combined::CombinedDecoder;
use tidemill_connect::format::{Decoder as _, Slots};
use tidemill_connect::source::file::FilePartition;
use tidemill_connect::source::{Block, Framing, Partition as _, Read};

use crate::config::Format;

/// Names that a key often has, the best first.
const KEYS: [&str; 17] = [
    "user_id",
    "userid",
    "user",
    "uid",
    "visitor_id",
    "visitorid",
    "anonymous_id",
    "anonymousid",
    "client_id",
    "clientid",
    "domain_userid",
    "session",
    "host",
    "client_ip",
    "remote_addr",
    "ip",
    "key",
];
/// Names that a time often has, the best first.
const TIMES: [&str; 13] = [
    "event_time",
    "timestamp",
    "@timestamp",
    "time",
    "ts",
    "datetime",
    "event_timestamp",
    "collector_tstamp",
    "created_at",
    "date",
    "occurred_at",
    "when",
    "t",
];

/// The first two records of a log.
pub(super) fn head(path: &Path) -> Result<Vec<Vec<u8>>, ConnectError> {
    let mut file = FilePartition::open(path, Framing::Lines, false, 0, false)?;
    let mut block = Block::default();
    if file.read(&mut block)? != Read::Data {
        return Ok(Vec::new());
    }
    Ok(block.spans.iter().take(2).map(|s| block.record(*s).to_vec()).collect())
}

/// The format of a log with this first line.
pub(super) fn format(first: &[u8]) -> Option<Format> {
    let line = String::from_utf8_lossy(first);
    let line = line.trim_start_matches('\u{feff}').trim();
    if line.starts_with('{') {
        return Some(Format::Json);
    }
    let wanted = ["host".to_owned(), "time".to_owned()];
    let mut slots = Slots::default();
    slots.reset(wanted.len());
    if CombinedDecoder::new(&wanted).decode(first, &mut slots).is_ok() {
        return Some(Format::Combined);
    }
    match (line.contains('\t'), line.contains(',')) {
        (true, _) => Some(Format::Tsv),
        (false, true) => Some(Format::Csv),
        (false, false) => None,
    }
}

/// The fields of the first record with their values; empty where the format has fixed ones.
pub(super) fn fields(format: Format, head: &[Vec<u8>]) -> Vec<(String, String)> {
    let line = |i: usize| head.get(i).map(|l| String::from_utf8_lossy(l).into_owned()).unwrap_or_default();
    let separator = match format {
        Format::Combined | Format::Avro | Format::Protobuf => return Vec::new(),
        Format::Json => {
            let object: serde_json::Map<String, serde_json::Value> =
                serde_json::from_str(&line(0)).unwrap_or_default();
            let shown = |v: serde_json::Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            return object.into_iter().map(|(name, value)| (name, shown(value))).collect();
        }
        Format::Csv => ',',
        Format::Tsv => '\t',
    };
    let plain = |cell: &str| cell.trim().trim_matches('"').to_owned();
    let (names, values) = (line(0), line(1));
    let mut values = values.split(separator).map(plain);
    let names = names.trim_start_matches('\u{feff}').split(separator).map(plain);
    names.map(|name| (name, values.next().unwrap_or_default())).collect()
}

/// The field that holds the key.
pub(super) fn key(fields: &[(String, String)]) -> Option<&str> {
    known(fields, &KEYS).map(|(name, _)| name.as_str())
}

/// The field that holds the time, with its value.
pub(super) fn time(fields: &[(String, String)]) -> Option<(&str, &str)> {
    known(fields, &TIMES).map(|(name, value)| (name.as_str(), value.as_str()))
}

fn known<'a>(fields: &'a [(String, String)], names: &[&str]) -> Option<&'a (String, String)> {
    names.iter().find_map(|n| fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(n)))
}

/// The unit of a time that is a number, by its size: as seconds it would lie between 1973 and 5138, as
/// milliseconds from 1973 on, and so on. None if it is no number.
pub(super) fn unit(value: &str) -> Option<&'static str> {
    let number: f64 = value.parse().ok().filter(|n: &f64| n.is_finite())?;
    Some(match number.abs() {
        n if n < 1e11 => "s",
        n if n < 1e14 => "ms",
        _ => "us",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_by_their_first_line() {
        let line =
            br#"83.149.9.216 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 203 "-" "Mozilla, 5.0""#;
        assert_eq!(format(line), Some(Format::Combined));
        assert_eq!(format(br#"{"user": "a,b", "ts": 1}"#), Some(Format::Json));
        assert_eq!(format(b"host\tlogname\ttime"), Some(Format::Tsv));
        assert_eq!(format("\u{feff}user_id,ts".as_bytes()), Some(Format::Csv));
        assert_eq!(format(b"hello"), None);
    }

    #[test]
    fn fields_by_their_names() {
        let head = [b"host\tlogname\ttime".to_vec(), b"a.b\t-\t804571201".to_vec()];
        let found = fields(Format::Tsv, &head);
        assert_eq!((key(&found), time(&found)), (Some("host"), Some(("time", "804571201"))));
        let found = fields(Format::Json, &[br#"{"ts": 5, "User": "u", "ip": "1"}"#.to_vec()]);
        assert_eq!((key(&found), time(&found)), (Some("User"), Some(("ts", "5"))));
        let found = fields(Format::Csv, &[b"\"id\",\"what\"".to_vec()]);
        assert_eq!((key(&found), time(&found)), (None, None));
    }

    #[test]
    fn units_by_the_size_of_the_number() {
        let units =
            ["804571201", "1331923247.5", "1331923247000", "1331923247000000", "2015-05-17"].map(unit);
        assert_eq!(units, [Some("s"), Some("s"), Some("ms"), Some("us"), None]);
    }
}
