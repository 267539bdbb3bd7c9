//! The name of a new plugin: of its crate, of its folder, and what rows and metrics call it.

use std::path::Path;

use tidemill_sandbox::bounds::NAME_BYTES_MAX;

use super::super::super::out::Failure;

/// Crates that a new one would be mistaken for: the language's own, and those that stand under `vendor` or are needed by them.
const TAKEN: [&str; 9] =
    ["alloc", "core", "proc-macro", "std", "test", "tidemill", "bytemuck", "serde-json", "wit-bindgen"];
/// Words of the language: what is called so cannot be named in code.
const KEYWORDS: [&str; 51] = [
    "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "crate", "do", "dyn",
    "else", "enum", "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop",
    "macro", "match", "mod", "move", "mut", "override", "priv", "pub", "ref", "return", "self", "static",
    "struct", "super", "trait", "true", "try", "type", "typeof", "unsafe", "unsized", "use", "virtual",
    "where", "while", "yield",
];

/// A name that a plugin may have.
#[derive(Debug)]
pub(super) struct Name(String);

impl Name {
    /// The last part of the path.
    ///
    /// # Errors
    /// If no plugin can be called so.
    pub(super) fn of(path: &Path) -> Result<Name, Failure> {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
            let message = format!("{} does not end with a name", path.display());
            return Err(Failure::new(2, message, "name the folder to make".to_owned()));
        };
        check(name).map_err(|why| {
            let help = suggestion(name).map(|better| format!("{better:?} would do"));
            Failure::new(2, format!("no plugin can be called {name:?}: {why}"), help)
        })?;
        Ok(Name(name.to_owned()))
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// As Rust code names the crate.
    pub(super) fn in_code(&self) -> String {
        self.0.replace('-', "_")
    }
}

fn check(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if let Some(c) = name.chars().find(|c| !fits(*c)) {
        return Err(format!("{c:?} is no lower-case letter, digit or hyphen"));
    }
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        return Err("it does not begin with a letter".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("it is longer than {NAME_BYTES_MAX} characters"));
    }
    if KEYWORDS.contains(&name) {
        return Err("it is a word of Rust".to_owned());
    }
    if TAKEN.contains(&name) || name.starts_with("tidemill-") {
        return Err("there is such a crate, and the two would be mistaken for each other".to_owned());
    }
    Ok(())
}

/// What was probably meant, if that is a name.
fn suggestion(name: &str) -> Option<String> {
    let mut better = String::new();
    for c in name.chars() {
        if c.is_uppercase() && better.ends_with(|c: char| c.is_ascii_lowercase()) {
            better.push('-');
        }
        let c = c.to_ascii_lowercase();
        better.push(if c.is_ascii_alphanumeric() { c } else { '-' });
    }
    let mut better = better.trim_matches('-').to_owned();
    if check(&better).is_err() {
        better = format!("my-{better}");
    }
    check(&better).is_ok().then_some(better)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_contract_and_cargo_both_take() {
        for (name, why, better) in [
            ("Visits", "'V' is no lower-case letter", "visits"),
            ("myVisits", "'V' is no", "my-visits"),
            ("my_visits", "'_' is no", "my-visits"),
            ("2nd", "begin with a letter", "my-2nd"),
            ("-x", "begin with a letter", "x"),
            ("match", "a word of Rust", "my-match"),
            ("std", "there is such a crate", "my-std"),
            ("tidemill-plugin-sdk", "there is such a crate", "my-tidemill-plugin-sdk"),
        ] {
            let Err(Failure::Told { code, message, help }) = Name::of(Path::new(name)) else {
                panic!("{name}")
            };
            assert!(code == 2 && message.contains(why), "{name}: {message}");
            assert!(help.is_some_and(|h| h.contains(&format!("{better:?}"))), "{name}");
        }
        for path in ["visits", "plugins/visits", "./visits/", "a-1"] {
            assert!(Name::of(Path::new(path)).is_ok(), "{path}");
        }
        assert!(Name::of(Path::new("..")).is_err());
        assert!(Name::of(Path::new(&"a".repeat(65))).is_err());
    }
}
