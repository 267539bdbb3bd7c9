//! A component's bytes from a file, which may be anything: a file that is too long, or has no end, is not read to its end.

use crate::bounds::COMPONENT_BYTES_MAX;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Reads a file that is to be a component.
///
/// # Errors
/// If it cannot be read, or is longer than a component may be.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let too_large = |bytes: &str| {
        let why = format!("it has {bytes} bytes, where {COMPONENT_BYTES_MAX} are allowed");
        io::Error::new(io::ErrorKind::FileTooLarge, why)
    };
    let file = File::open(path)?;
    let said = file.metadata()?.len();
    if said > COMPONENT_BYTES_MAX as u64 {
        return Err(too_large(&said.to_string()));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(said).unwrap_or_default());
    // A file can grow while it is read, and a pipe has no length.
    file.take(COMPONENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > COMPONENT_BYTES_MAX {
        return Err(too_large(&format!("more than {COMPONENT_BYTES_MAX}")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_not_read_to_its_end() {
        let there = tempfile::tempdir().unwrap();
        let path = there.path().join("large.wasm");
        let file = File::create(&path).unwrap();
        file.set_len(COMPONENT_BYTES_MAX as u64).unwrap();
        assert_eq!(read(&path).unwrap().len(), COMPONENT_BYTES_MAX);
        // More than any machine has memory; it takes no time.
        file.set_len(1 << 40).unwrap();
        let refused = read(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
        assert!(
            refused.to_string().contains("it has 1099511627776 bytes, where 67108864 are allowed"),
            "{refused}"
        );
        // It says that it has no bytes, and has no end.
        assert_eq!(read(Path::new("/dev/zero")).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&there.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
