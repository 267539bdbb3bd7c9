//! Recognises gzip and zstd by their first bytes, and decodes them.
//!
//! Names are not asked: a log may be compressed under any name, and standard input has none. Several gzip
//! members or zstd frames, one after the other, are one stream (what `cat a.gz b.gz` makes).

use flate2::bufread::GzDecoder;
use std::io::{self, BufRead, BufReader};

const GZIP: [u8; 3] = [0x1f, 0x8b, 8];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Behind a first byte of 0x50 to 0x5f: a frame without data, which parallel compressors write first.
const ZSTD_SKIPPABLE: [u8; 3] = [0x2a, 0x4d, 0x18];

/// So many bytes tell how a stream is compressed.
pub const MAGIC_BYTES: usize = 4;

/// How bytes are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

/// Tells from the first [`MAGIC_BYTES`] of a stream; a shorter one is plain.
#[must_use]
pub fn of(head: &[u8]) -> Compression {
    if head.starts_with(&GZIP) {
        Compression::Gzip
    } else if head.starts_with(&ZSTD) || (head.len() >= MAGIC_BYTES && may_be_skippable(head)) {
        Compression::Zstd
    } else {
        Compression::Plain
    }
}

/// Whether more bytes could still make a compressed stream of this beginning. A live stream must not be
/// held back for bytes that cannot matter.
#[must_use]
pub fn undecided(head: &[u8]) -> bool {
    head.len() < MAGIC_BYTES
        && (GZIP.starts_with(head) || ZSTD.starts_with(head) || may_be_skippable(head))
        && of(head) == Compression::Plain
}

fn may_be_skippable(head: &[u8]) -> bool {
    match head {
        [] => true,
        [first, rest @ ..] => {
            let n = rest.len().min(ZSTD_SKIPPABLE.len());
            first & 0xf0 == 0x50 && rest[..n] == ZSTD_SKIPPABLE[..n]
        }
    }
}

/// The bytes of a reader that stands at its start, decompressed.
pub fn decoder<R: io::Read + Send + 'static>(
    compression: Compression,
    reader: R,
) -> io::Result<Box<dyn io::Read + Send>> {
    Ok(match compression {
        Compression::Plain => Box::new(reader),
        // The default buffer of 8 KiB would mean a system call for every 300 records.
        Compression::Gzip => {
            Box::new(Members(Some(GzDecoder::new(BufReader::with_capacity(64 << 10, reader)))))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(reader)?),
    })
}

/// The members of a gzip stream, one after the other. Zeros behind the last are padding (of tapes and of block devices),
/// which `gzip` passes over too.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> io::Read for Members<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let n = member.read(buf)?;
            if n > 0 || buf.is_empty() {
                return Ok(n);
            }
            // A member without content ends before its first byte as well.
            if let Some(mut rest) = self.0.take().map(GzDecoder::into_inner) {
                self.0 = skip_zeros(&mut rest)?.then(|| GzDecoder::new(rest));
            }
        }
        Ok(0)
    }
}

/// Whether anything but zeros follows; the reader then stands at it.
fn skip_zeros(reader: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = match reader.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        let (there, more) = (bytes.len(), zeros < bytes.len());
        reader.consume(zeros);
        if there == 0 || more {
            return Ok(more);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_bytes() {
        assert_eq!(of(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(of(&zstd::encode_all(&b"x"[..], 1).unwrap()), Compression::Zstd);
        assert_eq!(of(&[0x5a, 0x2a, 0x4d, 0x18, 9]), Compression::Zstd);
        for plain in [&b""[..], b"{}\n", b"P", b"P*M", b"(a)", b"\x1f\x8b"] {
            assert_eq!(of(plain), Compression::Plain);
        }
    }

    #[test]
    fn zeros_behind_the_last_gzip_member_are_padding() {
        use std::io::Write as _;
        let member = |text: &[u8]| {
            let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            e.write_all(text).unwrap();
            e.finish().unwrap()
        };
        let read = |parts: &[&[u8]]| {
            let (mut text, bytes) = (Vec::new(), parts.concat());
            decoder(Compression::Gzip, io::Cursor::new(bytes)).unwrap().read_to_end(&mut text).map(|_| text)
        };
        let (a, none, b) = (member(b"a\n"), member(b""), member(b"b\n"));
        let zeros = vec![0; 100_000];
        assert_eq!(read(&[&a, &none, &b]).unwrap(), b"a\nb\n");
        assert_eq!(read(&[&a, &b, &zeros]).unwrap(), b"a\nb\n");
        assert_eq!(read(&[&a, &zeros[..512], &b]).unwrap(), b"a\nb\n");
        assert!(read(&[&a, &zeros[..512], b"garbage"]).is_err());
        assert!(read(&[&a, &b[..b.len() - 3]]).is_err());
        assert!(read(&[&a, &b[..4]]).is_err(), "cut in the header");
    }

    #[test]
    fn plain_text_is_decided_early() {
        assert!(undecided(b"") && undecided(b"\x1f") && undecided(b"(") && undecided(b"P*"));
        assert!(!undecided(b"{") && !undecided(b"PO") && !undecided(b"()") && !undecided(b"\x1f\x8b\x08"));
    }
}
