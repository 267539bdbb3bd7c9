//! `deploy` and `rollback`: which version of its rule runs a pipeline, while it runs.

use super::client::{Answer, Ask, Host};
use super::out::{self, Failure};
use super::{ConfigFile, text};
use axum::body::Bytes;
use axum::http::Method;
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const DEPLOY_EXAMPLES: &str = "\
Examples:
  tidemill deploy visits checkout.wasm visits.toml -m coupons        bring it and put it in force
  tidemill deploy visits checkout.wasm visits.toml --policy drain    open sessions end under the old version
  tidemill deploy visits checkout.wasm visits.toml --with '{\"idle\": \"20m\"}'";

const ROLLBACK_EXAMPLES: &str = "\
Examples:
  tidemill rollback visits visits.toml                   the version before is in force again
  tidemill rollback visits visits.toml -m 'too eager'    with a reason, for the audit";

/// How often it is asked what became of a change.
const PACE: Duration = Duration::from_millis(50);
/// The longest epoch, and as much again.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// What becomes of open sessions.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PolicyWord {
    /// Their state is migrated, and the new version goes on with them
    Migrate,
    /// They end under the version that they began with
    Drain,
}

impl PolicyWord {
    fn word(self) -> &'static str {
        match self {
            PolicyWord::Migrate => "migrate",
            PolicyWord::Drain => "drain",
        }
    }
}

/// Put a version of a plugin in force while events flow
///
/// Brings the component to the host that runs the config, and deploys it: it is tried on the states of open sessions and
/// warmed first, and comes into force for events after all that were accepted until then. A config file that names another
/// rule stays as it is; what was deployed holds until the file's rule changes.
#[derive(Debug, clap::Args)]
#[command(after_help = DEPLOY_EXAMPLES)]
pub(super) struct DeployArgs {
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    /// The component
    #[arg(value_name = "FILE.wasm")]
    component: PathBuf,
    #[command(flatten)]
    config: ConfigFile,
    /// What becomes of open sessions
    #[arg(long, value_enum, default_value = "migrate")]
    policy: PolicyWord,
    /// Under `drain`: how long after that in event time they may go on [default: 24h]
    #[arg(long, value_name = "DURATION")]
    drain_max: Option<String>,
    /// What the plugin is configured with (default: as before, if it is the same plugin)
    #[arg(long, value_name = "JSON", value_parser = object)]
    with: Option<Value>,
    /// What for; it stands in the history and the audit
    #[arg(long, short, default_value = "")]
    message: String,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

/// Go back to the version that was in force before
///
/// As if the newer one had never been, while nothing depends on it; else as a deployment of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = ROLLBACK_EXAMPLES)]
pub(super) struct RollbackArgs {
    /// The pipeline
    #[arg(value_name = "PIPELINE")]
    pipeline: String,
    #[command(flatten)]
    config: ConfigFile,
    /// What becomes of open sessions, if it comes as a deployment of its own
    #[arg(long, value_enum, default_value = "migrate")]
    policy: PolicyWord,
    /// Under `drain`: how long after that in event time they may go on [default: 24h]
    #[arg(long, value_name = "DURATION")]
    drain_max: Option<String>,
    /// What for; it stands in the history and the audit
    #[arg(long, short, default_value = "")]
    message: String,
    /// Print one JSON object
    #[arg(long)]
    pub(super) json: bool,
}

fn object(text: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
    if value.is_object() {
        Ok(value)
    } else {
        Err("a JSON object is wanted: '{\"gap\": \"20m\"}'".to_owned())
    }
}

/// A text in single quotes, for a shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// Runs `deploy`.
pub(super) fn deploy(args: &DeployArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let host = Host::needed(&plan, args.config.path())?;
    let bytes = tidemill_sandbox::read(&args.component)
        .map_err(|e| Failure::new(4, format!("{} cannot be read: {e}", args.component.display()), None))?;
    let brought = told(
        &host,
        &Ask {
            method: Method::POST,
            path: "/api/v1/plugins",
            headers: &[("content-type", "application/wasm")],
            body: bytes.into(),
            shown: Some(format!("--data-binary {}", quoted(&format!("@{}", args.component.display())))),
        },
    )?;
    let path = format!("/api/v1/pipelines/{}/deployment", args.pipeline);
    let now = host.ask(&Ask::get(&path))?;
    let mut wish = json!({
        "plugin": brought.body["name"], "version": brought.body["version"],
        "policy": args.policy.word(), "message": args.message,
    });
    if let Some(max) = &args.drain_max {
        wish["drain_max"] = max.as_str().into();
    }
    if let Some(config) = &args.with {
        wish["config"] = config.clone();
    }
    let tag = now.etag.unwrap_or_default();
    let text = wish.to_string();
    let accepted = told(
        &host,
        &Ask {
            method: Method::PUT,
            path: &path,
            headers: &[JSON, ("if-match", &tag)],
            shown: Some(format!("-d {}", quoted(&text))),
            body: Bytes::from(text),
        },
    )?;
    conclude(&host, accepted, args.json)
}

/// Runs `rollback`.
pub(super) fn rollback(args: &RollbackArgs) -> Result<u8, Failure> {
    let plan = args.config.load()?;
    let host = Host::needed(&plan, args.config.path())?;
    // There may be nothing to go back from yet: the question waits for it, the change does not.
    let now = host.ask(&Ask::get(&format!("/api/v1/pipelines/{}/deployment", args.pipeline)))?;
    let tag = now.etag.unwrap_or_default();
    let mut wish = json!({ "policy": args.policy.word(), "message": args.message });
    if let Some(max) = &args.drain_max {
        wish["drain_max"] = max.as_str().into();
    }
    let text = wish.to_string();
    let accepted = told(
        &host,
        &Ask {
            method: Method::POST,
            path: &format!("/api/v1/pipelines/{}/rollback", args.pipeline),
            headers: &[JSON, ("if-match", &tag)],
            shown: Some(format!("-d {}", quoted(&text))),
            body: Bytes::from(text),
        },
    )?;
    conclude(&host, accepted, args.json)
}

/// Asks, and says how it is done without this program.
fn told(host: &Host, ask: &Ask<'_>) -> Result<Answer, Failure> {
    out::note(host.curl(ask));
    host.ask(ask)
}

/// Waits for what becomes of a change, and says it.
fn conclude(host: &Host, accepted: Answer, as_json: bool) -> Result<u8, Failure> {
    let path = accepted.location.unwrap_or_default();
    let mut operation = accepted.body;
    let begun = Instant::now();
    while operation["status"] == "waiting" {
        if begun.elapsed() > WAIT_MAX {
            let help = format!("ask what became of it: {}", host.curl(&Ask::get(&path)));
            return Err(Failure::new(1, "the pipeline has not come to a barrier yet", help));
        }
        // Only the pace of asking: a barrier comes once an epoch.
        std::thread::sleep(PACE);
        operation = host.ask(&Ask::get(&path))?.body;
    }
    if let Some(why) = operation["refused"].as_str() {
        return Err(Failure::new(6, why, None));
    }
    if as_json {
        out::print_json(&operation)?;
        return Ok(0);
    }
    let pipeline = text::foreign(operation["pipeline"].as_str().unwrap_or_default(), 60);
    let from = operation["from"].as_str().map_or_else(String::new, |t| format!(" for events from {t} on"));
    let pause = operation["pause_ms"].as_f64().unwrap_or_default();
    let mut stdout = out::stdout();
    writeln!(
        stdout,
        "{pipeline}: deployment {} is in force{from}; events waited {pause:.1} ms for it",
        operation["deployment"]
    )?;
    stdout.flush()?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_quoted_text_as_it_was() {
        assert_eq!(quoted(r#"{"message":"it's"}"#), r#"'{"message":"it'\''s"}'"#);
        assert!(object("[1]").is_err() && object("{\"gap\":\"1m\"}").is_ok());
    }
}
