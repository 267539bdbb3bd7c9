//! The bytes of one epoch record: the unit that becomes durable at once or not at all.
//!
//! A pure codec: bytes in, values out; files belong to the host's store. All numbers are little-endian.
//!
//! ```text
//! magic "TMEP" | version u16 | flags u16 | incarnation u64 | epoch u64 | previous u128 | length u64 | sections u32
//! then for each section: kind u8 | length u64
//! then the sections' bytes, in the same order
//! then the checksum: XXH3-128 over everything before it
//! ```
//!
//! Invariants: `length` counts the whole record, footer included; nothing is believed before the
//! checksum holds; `previous` is the checksum of the record before (0 for the first of a log), so
//! that a record cannot be exchanged or left out unnoticed. The sections are opaque here.

use xxhash_rust::xxh3::xxh3_128;

/// The first four bytes of every record.
pub const MAGIC: [u8; 4] = *b"TMEP";
/// The format that this code writes, and the only one it reads.
pub const VERSION: u16 = 1;

const HEADER_BYTES: usize = 4 + 2 + 2 + 8 + 8 + 16 + 8 + 4;
const TABLE_ENTRY_BYTES: usize = 1 + 8;
const FOOTER_BYTES: usize = 16;
/// No record is shorter: a header and a footer without sections.
pub const RECORD_BYTES_MIN: usize = HEADER_BYTES + FOOTER_BYTES;

/// What a section holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Positions, watermarks, cursors, schedule, audit entries, counters: JSON text.
    Meta = 0,
    /// Changed state of one lane.
    State = 1,
    /// The outbox: revisions of this epoch in the flat encoding.
    Rows = 2,
    /// Dead letters as JSON lines.
    Letters = 3,
    /// Revisions of this epoch that wait for their lookups and are not sent yet, in the same encoding.
    Unresolved = 4,
    /// The outbox: revisions of earlier epochs, each with its revision before it.
    Enriched = 5,
    /// Which unresolved revisions are resolved with this epoch.
    Resolved = 6,
}

impl Kind {
    const fn from_u8(b: u8) -> Option<Kind> {
        match b {
            0 => Some(Kind::Meta),
            1 => Some(Kind::State),
            2 => Some(Kind::Rows),
            3 => Some(Kind::Letters),
            4 => Some(Kind::Unresolved),
            5 => Some(Kind::Enriched),
            6 => Some(Kind::Resolved),
            _ => None,
        }
    }
}

/// What the writer says about a record; the rest is computed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The start of the process that wrote it.
    pub incarnation: u64,
    /// The epoch it commits; epochs count from 1.
    pub epoch: u64,
    /// The checksum of the record before, 0 if there is none.
    pub previous: u128,
}

/// A record whose checksum holds, borrowed from its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What the writer said.
    pub header: Header,
    /// Its own checksum, which the next record repeats.
    pub checksum: u128,
    /// Its length in bytes, footer included; what follows belongs to the next record.
    pub len: usize,
    /// The sections in the order they were written.
    pub sections: Vec<(Kind, &'a [u8])>,
}

impl<'a> Record<'a> {
    /// The first section of this kind.
    #[must_use]
    pub fn section(&self, kind: Kind) -> Option<&'a [u8]> {
        self.sections_of(kind).next()
    }
    /// All sections of this kind in order.
    pub fn sections_of(&self, kind: Kind) -> impl Iterator<Item = &'a [u8]> {
        self.sections.iter().filter(move |(k, _)| *k == kind).map(|(_, bytes)| *bytes)
    }
    /// Whether the record comes right after the one with this checksum.
    ///
    /// # Errors
    /// [`Damage::Chain`] if it follows another one.
    pub fn follows(&self, previous: u128) -> Result<(), Damage> {
        if self.header.previous == previous { Ok(()) } else { Err(Damage::Chain) }
    }
}

/// Why bytes are not a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    /// The bytes end inside the record (or its length is wrong).
    #[error("the record is incomplete")]
    Short,
    /// The bytes do not begin with [`MAGIC`].
    #[error("no record begins here")]
    Magic,
    /// Written in a format that this version does not know.
    #[error("the record has format {0}, this version of tidemill reads format {VERSION}")]
    Version(u16),
    /// Bytes have changed since they were written, or were never written.
    #[error("the record's checksum does not match its bytes")]
    Checksum,
    /// A sound record, but it follows another one than the one before it.
    #[error("the record does not follow the one before it: one is missing or was exchanged")]
    Chain,
    /// The checksum holds, yet flags or sections make no sense: written by a faulty or newer program.
    #[error("the record is sound but its section table is not one that this version writes")]
    Layout,
}

/// The length of the record that [`encode_into`] would write.
#[must_use]
pub fn encoded_len(sections: &[(Kind, &[u8])]) -> usize {
    let body: usize = sections.iter().map(|(_, bytes)| TABLE_ENTRY_BYTES + bytes.len()).sum();
    RECORD_BYTES_MIN + body
}

/// Appends one record to `out` and returns its checksum, the next record's `previous`.
pub fn encode_into(out: &mut Vec<u8>, header: &Header, sections: &[(Kind, &[u8])]) -> u128 {
    let start = out.len();
    let len = encoded_len(sections);
    out.reserve(len);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    // Flags: none defined yet; a reader refuses those it does not know.
    out.extend_from_slice(&0u16.to_le_bytes());
    out.extend_from_slice(&header.incarnation.to_le_bytes());
    out.extend_from_slice(&header.epoch.to_le_bytes());
    out.extend_from_slice(&header.previous.to_le_bytes());
    out.extend_from_slice(&(len as u64).to_le_bytes());
    // A section per lane and a handful more: the count is far below u32::MAX.
    out.extend_from_slice(&(sections.len() as u32).to_le_bytes());
    for (kind, bytes) in sections {
        out.push(*kind as u8);
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    }
    for (_, bytes) in sections {
        out.extend_from_slice(bytes);
    }
    let checksum = xxh3_128(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
    debug_assert_eq!(out.len() - start, len);
    checksum
}

/// Reads the record at the start of `bytes`; what follows it is not looked at.
///
/// # Errors
/// Says which check failed. `Short` and `Checksum` cannot always be told apart from a damaged
/// length: both mean only that no sound record stands here.
pub fn decode(bytes: &[u8]) -> Result<Record<'_>, Damage> {
    let known = bytes.len().min(MAGIC.len());
    if bytes[..known] != MAGIC[..known] {
        return Err(Damage::Magic);
    }
    let mut head = Cursor { bytes, at: MAGIC.len() };
    let version = u16::from_le_bytes(head.take().ok_or(Damage::Short)?);
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let flags = u16::from_le_bytes(head.take().ok_or(Damage::Short)?);
    let incarnation = u64::from_le_bytes(head.take().ok_or(Damage::Short)?);
    let epoch = u64::from_le_bytes(head.take().ok_or(Damage::Short)?);
    let previous = u128::from_le_bytes(head.take().ok_or(Damage::Short)?);
    let len = u64::from_le_bytes(head.take().ok_or(Damage::Short)?);
    let sections = u32::from_le_bytes(head.take().ok_or(Damage::Short)?);
    // A length that does not fit the address space cannot lie within these bytes either.
    let len = usize::try_from(len).map_err(|_| Damage::Short)?;
    if len < RECORD_BYTES_MIN {
        return Err(Damage::Checksum);
    }
    let record = bytes.get(..len).ok_or(Damage::Short)?;
    let (body, footer) = record.split_at(len - FOOTER_BYTES);
    let checksum = xxh3_128(body);
    if footer != checksum.to_le_bytes() {
        return Err(Damage::Checksum);
    }
    if flags != 0 {
        return Err(Damage::Layout);
    }
    let sections = sections_of(body, sections).ok_or(Damage::Layout)?;
    Ok(Record { header: Header { incarnation, epoch, previous }, checksum, len, sections })
}

/// Cuts the body into `count` sections that must fill it exactly.
fn sections_of(body: &[u8], count: u32) -> Option<Vec<(Kind, &[u8])>> {
    let mut table = Cursor { bytes: body, at: HEADER_BYTES };
    let table_bytes = usize::try_from(count).ok()?.checked_mul(TABLE_ENTRY_BYTES)?;
    let mut rest = body.get(HEADER_BYTES.checked_add(table_bytes)?..)?;
    let mut sections = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let [kind] = table.take()?;
        let len = usize::try_from(u64::from_le_bytes(table.take()?)).ok()?;
        let (section, after) = rest.split_at_checked(len)?;
        sections.push((Kind::from_u8(kind)?, section));
        rest = after;
    }
    rest.is_empty().then_some(sections)
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEADER: Header = Header { incarnation: 3, epoch: 258, previous: 0x0102_0304 };

    fn small() -> Vec<u8> {
        let mut out = Vec::new();
        let sections: [(Kind, &[u8]); 3] =
            [(Kind::Meta, b"{}"), (Kind::State, b"\x01\x02"), (Kind::Rows, b"")];
        encode_into(&mut out, &HEADER, &sections);
        out
    }

    /// Format 1 as it was first written. It may never change: a change needs a new version number.
    const FROZEN: &str = "544d45500100000003000000000000000201000000000000040302010000000000000000000000006300000000000000030000000002000000000000000102000000000000000200000000000000007b7d01025b6b08c0c31e88ef4ef6ad9582597cb2";

    #[test]
    fn frozen_bytes() {
        let hex: String = small().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, FROZEN);
        let record = small();
        let record = decode(&record).unwrap();
        assert_eq!(record.header, HEADER);
        assert_eq!(record.section(Kind::Meta), Some(&b"{}"[..]));
        assert_eq!(record.section(Kind::Letters), None);
    }

    #[test]
    fn each_damage_has_its_name() {
        let good = small();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(decode(&[]), Err(Damage::Short));
        assert_eq!(decode(&good[..good.len() - 1]), Err(Damage::Short));
        assert_eq!(decode(b"TMEX"), Err(Damage::Magic));
        assert_eq!(decode(&[0; 200]), Err(Damage::Magic));
        assert_eq!(decode(&with(4, 2)), Err(Damage::Version(2)));
        assert_eq!(decode(&with(HEADER_BYTES + 30, 9)), Err(Damage::Checksum));
        let record = decode(&good).unwrap();
        assert_eq!(record.follows(HEADER.previous), Ok(()));
        assert_eq!(record.follows(0), Err(Damage::Chain));
        // A sound checksum over a section kind that nobody writes.
        let mut strange = with(HEADER_BYTES, 77);
        let end = strange.len() - FOOTER_BYTES;
        let checksum = xxh3_128(&strange[..end]);
        strange[end..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(decode(&strange), Err(Damage::Layout));
    }

    fn kind() -> impl Strategy<Value = Kind> {
        (0_u8..=6).prop_map(|b| Kind::from_u8(b).unwrap())
    }

    #[test]
    fn kinds_have_their_numbers_for_ever() {
        let all = [
            Kind::Meta,
            Kind::State,
            Kind::Rows,
            Kind::Letters,
            Kind::Unresolved,
            Kind::Enriched,
            Kind::Resolved,
        ];
        for (n, kind) in (0_u8..).zip(all) {
            assert_eq!((kind as u8, Kind::from_u8(n)), (n, Some(kind)));
        }
        assert_eq!(Kind::from_u8(7), None);
    }

    prop_compose! {
        fn encoded()(
            incarnation: u64, epoch: u64, previous: u128,
            sections in prop::collection::vec((kind(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        ) -> (Header, Vec<(Kind, Vec<u8>)>, Vec<u8>) {
            let header = Header { incarnation, epoch, previous };
            let mut out = Vec::new();
            let borrowed: Vec<(Kind, &[u8])> = sections.iter().map(|(k, b)| (*k, b.as_slice())).collect();
            encode_into(&mut out, &header, &borrowed);
            assert_eq!(out.len(), encoded_len(&borrowed));
            (header, sections, out)
        }
    }

    proptest! {
        #[test]
        fn round_trip((header, sections, bytes) in encoded(), after in prop::collection::vec(any::<u8>(), 0..20)) {
            let mut stream = bytes.clone();
            stream.extend_from_slice(&after);
            let record = decode(&stream).unwrap();
            prop_assert_eq!(record.header, header);
            prop_assert_eq!(record.len, bytes.len());
            prop_assert_eq!(record.sections, sections.iter().map(|(k, b)| (*k, b.as_slice())).collect::<Vec<_>>());
        }

        #[test]
        fn every_cut_is_short((_, _, bytes) in encoded(), at: prop::sample::Index) {
            prop_assert_eq!(decode(&bytes[..at.index(bytes.len())]), Err(Damage::Short));
        }

        #[test]
        fn every_flipped_bit_is_found((_, _, bytes) in encoded(), at: prop::sample::Index) {
            let mut bytes = bytes;
            let bit = at.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&VERSION.to_le_bytes());
            bytes.extend_from_slice(&tail);
            prop_assert!(decode(&bytes).is_err());
        }
    }
}
