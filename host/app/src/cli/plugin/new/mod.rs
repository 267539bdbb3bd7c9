//! `plugin new`: a folder that compiles anywhere, with a plugin in it that can be read, tested, built and run.
//!
//! The templates are whole files in `templates`; they are compiled by the tests of the whole program, as an author would.
//! Nothing is written unless all of it can be: the folder is made beside its place and renamed into it.

mod name;
mod vendor;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde_json::json;

use self::name::Name;
use super::super::out::{self, BOLD, Failure};

const EXAMPLES: &str = "\
Examples:
  tidemill plugin new visits --kind sessionizer          a folder `visits` with a sessionizer
  tidemill plugin new plugins/robots --kind validator    elsewhere

The folder holds its own copy of the SDK, so it needs nothing of this program's sources.";

/// Begin a plugin of your own
///
/// Makes a folder with a small plugin in Rust that works, its scenarios, a pipeline that runs it over made-up traffic, and
/// the SDK.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct NewArgs {
    /// The plugin's name, or the folder to make: its last part is the name
    #[arg(value_name = "NAME")]
    path: PathBuf,
    /// What it is to do
    #[arg(long, value_name = "KIND")]
    kind: Kind,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// A kind of plugin.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Judges events: accept or reject
    Validator,
    /// Says where sessions begin and end
    #[value(alias = "session")]
    Sessionizer,
    /// Adds fields to sessions from what is looked up
    Enricher,
}

/// A file of a new folder: its path and its text.
type File = (PathBuf, String);

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Validator => "a validator",
            Kind::Sessionizer => "a sessionizer",
            Kind::Enricher => "an enricher",
        }
    }

    fn templates(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Kind::Validator => &[
                ("src/lib.rs", include_str!("templates/validator/lib.rs")),
                ("tests/scenarios.rs", include_str!("templates/validator/scenarios.rs")),
                ("pipeline.toml", include_str!("templates/validator/pipeline.toml")),
            ],
            Kind::Sessionizer => &[
                ("src/lib.rs", include_str!("templates/sessionizer/lib.rs")),
                ("tests/scenarios.rs", include_str!("templates/sessionizer/scenarios.rs")),
                ("pipeline.toml", include_str!("templates/sessionizer/pipeline.toml")),
            ],
            Kind::Enricher => &[
                ("src/lib.rs", include_str!("templates/enricher/lib.rs")),
                ("tests/scenarios.rs", include_str!("templates/enricher/scenarios.rs")),
                ("pipeline.toml", include_str!("templates/enricher/pipeline.toml")),
                ("visitors.csv", include_str!("templates/enricher/visitors.csv")),
            ],
        }
    }
}

/// Those that all kinds have.
const TEMPLATES: [(&str, &str); 3] = [
    ("Cargo.toml", include_str!("templates/Cargo.toml.txt")),
    ("README.md", include_str!("templates/README.md")),
    (".gitignore", include_str!("templates/gitignore.txt")),
];

/// Runs the command.
pub(super) fn execute(args: &NewArgs) -> Result<u8, Failure> {
    let name = Name::of(&args.path)?;
    let files = files(&name, args.kind)?;
    require_room(&args.path)?;
    write(&args.path, &files)
        .map_err(|e| Failure::new(4, format!("{} cannot be written: {e}", args.path.display()), None))?;
    if args.json {
        out::print_json(&json!({
            "path": args.path, "name": name.text(), "files": files.len(), "exit_code": 0,
        }))?;
        return Ok(0);
    }
    let mut stdout = out::stdout();
    let folder = args.path.display();
    writeln!(stdout, "{BOLD}{folder}{BOLD:#}: {} and its scenarios\n", args.kind.words())?;
    writeln!(stdout, "    cd {folder}")?;
    // What to do next stands in its README.
    for step in TEMPLATES[1].1.lines().filter(|l| l.starts_with("    ")) {
        writeln!(stdout, "{}", fill(step, &name, args.kind))?;
    }
    writeln!(
        stdout,
        "\nsrc/lib.rs is the plugin, tests/scenarios.rs says what must come of it; README.md has the rest."
    )?;
    stdout.flush()?;
    Ok(0)
}

/// Everything that the folder holds.
fn files(name: &Name, kind: Kind) -> Result<Vec<File>, Failure> {
    let templates = TEMPLATES.iter().chain(kind.templates());
    let mut files: Vec<File> =
        templates.map(|(path, text)| (PathBuf::from(path), fill(text, name, kind))).collect();
    let vendored = vendor::files(name.text());
    files.extend(
        vendored.map_err(|e| Failure::new(1, format!("the SDK in this binary is broken: {e}"), None))?,
    );
    Ok(files)
}

/// Puts the name in place of what stands for it.
fn fill(text: &str, name: &Name, kind: Kind) -> String {
    text.replace("NAME", name.text())
        .replace("CRATE", &name.in_code())
        .replace("KIND", kind.words())
        .replace("RUST_VERSION", env!("CARGO_PKG_RUST_VERSION"))
}

/// Nothing is there that could be lost.
fn require_room(path: &Path) -> Result<(), Failure> {
    let taken = |what: &str| {
        let help = "choose another name, or remove what is there".to_owned();
        Err(Failure::new(4, format!("{} {what}", path.display()), help))
    };
    match std::fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => taken("is there already, and is not empty"),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => taken("is there already, and is no folder"),
        Err(e) => Err(Failure::new(4, format!("{} cannot be read: {e}", path.display()), None)),
    }
}

fn write(path: &Path, files: &[File]) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent)?;
    let made = tempfile::Builder::new().prefix(".tidemill-new-").tempdir_in(parent)?;
    let inside = made.path().join("plugin");
    for (file, text) in files {
        let to = inside.join(file);
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(to, text)?;
    }
    // Over nothing, or over an empty folder.
    std::fs::rename(inside, path)
}
