//! Where schemas are by their number: a folder of files, or a schema registry (Confluent's API) over HTTP.
//!
//! Invariants: a registry that cannot say is `Failed`, and is then left alone for [`AWAY`]; one that says there is none is
//! an answer. No answer is larger than [`ANSWER_BYTES_MAX`], and no schema refers to more than [`REFERENCES_MAX`] others.

use super::schema::{SCHEMA_BYTES_MAX, Schema};
use crate::ConnectError;
use crate::lookup::http;
use base64::Engine as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A schema as JSON, in which every quote may be escaped.
const ANSWER_BYTES_MAX: u64 = 2 * SCHEMA_BYTES_MAX as u64;
/// Schemas that one refers to, directly or not.
const REFERENCES_MAX: usize = 64;
/// How long one request may take: whoever waits reads nothing meanwhile.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// How long a registry that could not say is not asked again.
const AWAY: Duration = Duration::from_secs(1);

/// Knows schemas by their number.
pub trait Schemas: Send {
    /// The schema of a number, or why there is none.
    ///
    /// # Errors
    /// `Failed`: it cannot be known now.
    fn find(&mut self, id: u32) -> Result<Result<Schema, String>, ConnectError>;
}

/// Schemas in files: `7.avsc` is number 7. Types of others are not found: each file has all that it names.
#[derive(Debug)]
pub struct Folder {
    folder: PathBuf,
}

impl Folder {
    /// For the files of a folder.
    #[must_use]
    pub fn new(folder: PathBuf) -> Folder {
        Folder { folder }
    }
}

impl Schemas for Folder {
    fn find(&mut self, id: u32) -> Result<Result<Schema, String>, ConnectError> {
        let path = self.folder.join(format!("{id}.avsc"));
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Schema::parse(&text).map_err(|e| format!("{}: {e}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Err(format!("no file {}", path.display()))),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Ok(Err(format!("{} is no UTF-8", path.display())))
            }
            Err(e) => Err(ConnectError::Failed(format!("{}: {e}", path.display()))),
        }
    }
}

/// A schema registry.
pub struct Registry {
    url: String,
    authorization: Option<String>,
    agent: ureq::Agent,
    /// When it last could not say, and what came instead.
    away: Option<(Instant, String)>,
}

/// What is wrong with the URL of a registry, if anything.
#[must_use]
pub fn url_problem(url: &str) -> Option<&'static str> {
    http::url_problem(url, http::Method::Post)
}

/// An answer, and whether there was any.
type Answered = Result<Option<Value>, String>;

impl Registry {
    /// A registry at a URL; `login` is a name and a password. Nothing is asked yet.
    ///
    /// # Errors
    /// `Config`: the URL cannot be used.
    pub fn new(url: &str, login: Option<(&str, &str)>) -> Result<Registry, ConnectError> {
        if let Some(why) = url_problem(url) {
            return Err(ConnectError::Config(format!("{url}: {why}")));
        }
        let encoded =
            |(name, password)| base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        let agent = http::client().timeout_global(Some(REQUEST_MAX)).build().new_agent();
        Ok(Registry {
            url: url.trim_end_matches('/').to_owned(),
            authorization: login.map(|l| format!("Basic {}", encoded(l))),
            agent,
            away: None,
        })
    }

    fn get(&self, path: &str) -> Answered {
        let url = format!("{}/{path}", self.url);
        let mut request = self.agent.get(&url).header("accept", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = request.call().map_err(|e| format!("{url}: {e}"))?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(None),
            401 | 403 => return Err(format!("{url}: it wants another name or password")),
            status => return Err(format!("{url}: it answers {status}")),
        }
        let mut body = Vec::new();
        let mut reader = response.body_mut().as_reader().take(ANSWER_BYTES_MAX + 1);
        reader.read_to_end(&mut body).map_err(|e| format!("{url}: {e}"))?;
        if body.len() as u64 > ANSWER_BYTES_MAX {
            return Err(format!("{url}: the answer has more than {ANSWER_BYTES_MAX} bytes"));
        }
        serde_json::from_slice(&body).map(Some).map_err(|e| format!("{url}: the answer is no JSON: {e}"))
    }

    fn ask(&self, id: u32) -> Result<Result<Schema, String>, String> {
        let Some(answer) = self.get(&format!("schemas/ids/{id}"))? else {
            return Ok(Err(format!("the registry at {} has none", self.url)));
        };
        let kind = answer.get("schemaType").and_then(Value::as_str).unwrap_or("AVRO");
        if kind != "AVRO" {
            return Ok(Err(format!("it is {kind}, not AVRO")));
        }
        let Some(text) = answer.get("schema").and_then(Value::as_str) else {
            return Err(format!("{}: the answer has no `schema`", self.url));
        };
        let mut others = Others::default();
        if let Err(why) = self.collect(&answer, &mut others)? {
            return Ok(Err(why));
        }
        Ok(Schema::parse_with(text, others.texts.iter().map(String::as_str)))
    }

    /// What a schema refers to, each before those that refer to it.
    fn collect(&self, answer: &Value, others: &mut Others) -> Result<Result<(), String>, String> {
        for reference in answer.get("references").and_then(Value::as_array).into_iter().flatten() {
            let subject = reference.get("subject").and_then(Value::as_str).unwrap_or_default();
            let version = reference.get("version").and_then(Value::as_u64).unwrap_or_default();
            if !others.seen.insert((subject.to_owned(), version)) {
                continue;
            }
            if others.seen.len() > REFERENCES_MAX {
                return Ok(Err(format!("it refers to more than {REFERENCES_MAX} others")));
            }
            let escaped = utf8_percent_encode(subject, NON_ALPHANUMERIC);
            let Some(other) = self.get(&format!("subjects/{escaped}/versions/{version}"))? else {
                return Ok(Err(format!("it refers to version {version} of `{subject}`, and there is none")));
            };
            if let Err(why) = self.collect(&other, others)? {
                return Ok(Err(why));
            }
            let text = other.get("schema").and_then(Value::as_str).unwrap_or_default();
            others.texts.push(text.to_owned());
        }
        Ok(Ok(()))
    }
}

#[derive(Default, Debug)]
struct Others {
    texts: Vec<String>,
    seen: BTreeSet<(String, u64)>,
}

impl Schemas for Registry {
    fn find(&mut self, id: u32) -> Result<Result<Schema, String>, ConnectError> {
        if let Some((since, why)) = &self.away
            && since.elapsed() < AWAY
        {
            return Err(ConnectError::Failed(why.clone()));
        }
        self.away = None;
        self.ask(id).map_err(|why| {
            let why = format!("the schema registry cannot say what schema {id} is: {why}");
            self.away = Some((Instant::now(), why.clone()));
            ConnectError::Failed(why)
        })
    }
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
