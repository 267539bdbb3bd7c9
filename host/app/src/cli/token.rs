//! `token`: what opens the admin API.

use super::ConfigFile;
use super::client::{Ask, Host};
use super::out::{self, Failure};
use crate::store::token::{TokenError, TokenFile};
use axum::http::Method;
use std::io::Write;

const EXAMPLES: &str = "\
Examples:
  tidemill token visits.toml                    print it
  curl -H \"authorization: Bearer $(tidemill token visits.toml)\" http://127.0.0.1:7300/api/v1/version
  tidemill token visits.toml --login            a link that opens the status page of the host that runs, once
  tidemill token visits.toml --rotate           make another; a host that runs takes it within a second";

/// Print the token of the admin API
///
/// It stands in the data directory, in a file that only its owner can read, and is made when it is first needed.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    config: ConfigFile,
    /// Make another: the one before opens nothing any more
    #[arg(long)]
    rotate: bool,
    /// Print a link that opens the status page once, within ten minutes
    #[arg(long, conflicts_with = "rotate")]
    login: bool,
}

/// Runs the command.
pub(super) fn execute(args: &TokenArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    if args.login {
        return login(&Host::needed(&plan, args.config.path())?);
    }
    let dir = &plan.server.data_dir;
    if !dir.is_dir() {
        let message = format!(
            "there is no data directory {}: nothing has run with this config from here",
            dir.display()
        );
        let help =
            "`tidemill run` makes it, and the token; a relative `data_dir` counts from the current directory";
        return Err(Failure::new(3, message, help.to_owned()));
    }
    let file = TokenFile::of(dir);
    let token = if args.rotate { file.make() } else { file.read_or_make().map(|(token, _)| token) };
    let token = token.map_err(|e| failed(&e))?;
    let mut stdout = out::stdout();
    writeln!(stdout, "{}", token.reveal())?;
    stdout.flush()?;
    Ok(0)
}

fn login(host: &Host) -> Result<u8, Failure> {
    let path = "/api/v1/login-links";
    let made = host.ask(&Ask { method: Method::POST, ..Ask::get(path) })?;
    let mut stdout = out::stdout();
    writeln!(stdout, "{}{}", host.url(), made.body["path"].as_str().unwrap_or_default())?;
    stdout.flush()?;
    Ok(0)
}

fn failed(e: &TokenError) -> Failure {
    let code = match e {
        TokenError::Readable(_) | TokenError::Malformed(_) => 4,
        TokenError::Random(_) => 1,
        TokenError::Store(e) => e.exit_code(),
    };
    Failure::new(code, e.to_string(), None)
}
