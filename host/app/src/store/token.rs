//! The token of the admin API: made once, kept in a file that only the owner can read.
//!
//! Invariants: the file is there with a whole token or not at all; one that others can read is not used.

use crate::config::plan::Secret;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tidemill_engine::outbox::hex;
use tidemill_store::disk::OsDisk;
use tidemill_store::{StoreError, create_dir_durably, read_if_there, replace};

/// Random bytes: nobody guesses them.
const RANDOM_BYTES: usize = 32;
/// So that a token that got into a text is recognised there.
const PREFIX: &str = "tidemill_";

/// A token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token(Secret);

impl Token {
    /// What a request must bring.
    pub(crate) fn reveal(&self) -> &str {
        self.0.reveal()
    }
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// Others than its owner can read it.
    #[error("others can read the token in {}: `chmod 600` it, and make another with `tidemill token --rotate`", .0.display())]
    Readable(PathBuf),
    /// The file holds something else.
    #[error("{} holds no token: make one with `tidemill token --rotate`", .0.display())]
    Malformed(PathBuf),
    /// The system has no randomness.
    #[error("no token can be made: {0}")]
    Random(String),
    /// The disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A secret that nobody guesses, in hex.
///
/// # Errors
/// If the system has no randomness.
pub(crate) fn random() -> Result<String, TokenError> {
    let mut random = [0; RANDOM_BYTES];
    getrandom::fill(&mut random).map_err(|e| TokenError::Random(e.to_string()))?;
    Ok(hex(&random))
}

/// Where the token of a data directory stands.
#[derive(Clone, Debug)]
pub(crate) struct TokenFile(PathBuf);

impl TokenFile {
    pub(crate) fn of(data_dir: &Path) -> TokenFile {
        TokenFile(data_dir.join("token"))
    }

    /// The token; `None` if none was made yet.
    ///
    /// # Errors
    /// If others can read it, or the file holds something else.
    pub(crate) fn read(&self) -> Result<Option<Token>, TokenError> {
        let Some(bytes) = read_if_there(&OsDisk, &self.0)? else { return Ok(None) };
        let mode = std::fs::metadata(&self.0).map_err(StoreError::storage("look at", &self.0))?;
        if mode.permissions().mode() & 0o077 != 0 {
            return Err(TokenError::Readable(self.0.clone()));
        }
        let text = std::str::from_utf8(&bytes).ok().map(str::trim_end);
        let hex = text.and_then(|t| t.strip_prefix(PREFIX));
        let whole = |h: &&str| h.len() == 2 * RANDOM_BYTES && h.bytes().all(|b| b.is_ascii_hexdigit());
        match (text, hex.filter(whole)) {
            (Some(text), Some(_)) => Ok(Some(Token(Secret::new(text.to_owned())))),
            _ => Err(TokenError::Malformed(self.0.clone())),
        }
    }

    /// The token, made now if there is none; whether it was.
    ///
    /// # Errors
    /// As [`read`](Self::read), and if it cannot be written.
    pub(crate) fn read_or_make(&self) -> Result<(Token, bool), TokenError> {
        match self.read()? {
            Some(token) => Ok((token, false)),
            None => Ok((self.make()?, true)),
        }
    }

    /// Makes a token in place of any that was there.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub(crate) fn make(&self) -> Result<Token, TokenError> {
        let text = format!("{PREFIX}{}", random()?);
        create_dir_durably(&OsDisk, tidemill_store::parent_of(&self.0))?;
        replace(&OsDisk, &self.0, format!("{text}\n").as_bytes())?;
        Ok(Token(Secret::new(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_token_is_made_once_and_another_when_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::of(&dir.path().join("state"));
        assert_eq!(file.read().unwrap(), None);
        let (first, new) = file.read_or_make().unwrap();
        assert!(new && mode(&file.0) == 0o600, "{:o}", mode(&file.0));
        assert_eq!(file.read_or_make().unwrap(), (first.clone(), false));
        let second = file.make().unwrap();
        assert_ne!(first, second);
        assert_eq!(file.read().unwrap(), Some(second.clone()));
        assert_eq!(format!("{second:?}"), "Token(***)");
    }

    #[test]
    fn a_file_that_others_can_read_or_that_holds_no_token_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = TokenFile::of(dir.path());
        file.make().unwrap();
        fs::set_permissions(&file.0, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(file.read(), Err(TokenError::Readable(_))));
        let again = file.make().unwrap();
        assert_eq!((file.read().unwrap(), mode(&file.0)), (Some(again), 0o600));
        for text in ["", "tidemill_", "tidemill_00", "x"] {
            fs::write(&file.0, text).unwrap();
            assert!(matches!(file.read(), Err(TokenError::Malformed(_))), "{text}");
        }
    }
}
