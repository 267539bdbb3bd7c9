//! A place of named objects outside of this machine's data directory: S3 and what speaks like it, Cloud Storage, or a folder.
//!
//! Objects are written whole and once: a name that is taken is told apart from a failure, so that two who write cannot both
//! believe that it was theirs. What fails in passing is tried again by the client, within [`RETRIES_MAX`] and [`RETRY_MS_MAX`].

use crate::ConnectError;
use futures_util::TryStreamExt as _;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme, PutMode, PutOptions, RetryConfig,
};
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;
use url::Url;

/// A service that throttles asks for some patience; what lasts longer is told, and the caller's next turn tries again.
const RETRIES_MAX: usize = 6;
/// And no longer than this, ms, for one object.
const RETRY_MS_MAX: u64 = 60_000;

/// Why a bucket cannot be what the config says.
#[derive(Debug)]
pub struct Problem {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub help: String,
}

/// Where it is and how it is reached: nothing is asked yet.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    url: Url,
    options: Vec<(String, String)>,
}

impl std::fmt::Debug for Location {
    /// The options may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Location").field("url", &self.address()).finish_non_exhaustive()
    }
}

enum Scheme {
    S3,
    CloudStorage,
    Folder(PathBuf),
}

impl Location {
    /// A URL of `file:`, `s3:` or `gs:`, and what its client is to be told besides, by the client's own names. What is not said
    /// here comes from the environment, as other tools of the service have it.
    ///
    /// # Errors
    /// If it is no such URL, or an option is unknown to the client.
    pub fn new(url: &str, options: Vec<(String, String)>) -> Result<Location, Problem> {
        const EXAMPLE: &str = "write `store = \"s3://bucket/tidemill\"`, \"gs://bucket/tidemill\" or \"file:///mnt/backup/tidemill\"";
        let problem = |message: String| Problem { message, help: EXAMPLE.to_owned() };
        let url: Url = url.parse().map_err(|e| problem(format!("that is no URL: {e}")))?;
        if url.password().is_some() || !url.username().is_empty() {
            let help =
                "leave it to the environment, or write it into `options` with \"${env:NAME}\"".to_owned();
            return Err(Problem { message: "a secret does not belong into the URL".to_owned(), help });
        }
        let location = Location { url, options };
        let known: fn(&str) -> bool = match location.scheme().map_err(problem)? {
            Scheme::S3 => |key| key.parse::<AmazonS3ConfigKey>().is_ok(),
            Scheme::CloudStorage => |key| key.parse::<GoogleConfigKey>().is_ok(),
            Scheme::Folder(_) => |_| false,
        };
        match location.options.iter().find(|(key, _)| !known(key)) {
            Some((key, _)) => {
                let help = "S3 has `region`, `endpoint`, `allow_http`, `access_key_id`, `secret_access_key` and others, Cloud \
                            Storage `service_account` and others, a folder none"
                    .to_owned();
                Err(Problem { message: format!("`{}` has no option `{key}`", location.address()), help })
            }
            None => Ok(location),
        }
    }

    /// The URL, for messages.
    #[must_use]
    pub fn address(&self) -> String {
        self.url.as_str().trim_end_matches('/').to_owned()
    }

    fn scheme(&self) -> Result<Scheme, String> {
        match self.url.scheme() {
            "file" => self
                .url
                .to_file_path()
                .map(Scheme::Folder)
                .map_err(|()| "that leads to no folder: it takes three slashes".to_owned()),
            _ => match ObjectStoreScheme::parse(&self.url) {
                Ok((ObjectStoreScheme::AmazonS3, _)) => Ok(Scheme::S3),
                Ok((ObjectStoreScheme::GoogleCloudStorage, _)) => Ok(Scheme::CloudStorage),
                Ok(_) | Err(_) => Err(format!("nothing is known of `{}:`", self.url.scheme())),
            },
        }
    }

    /// Makes the client for it.
    ///
    /// # Errors
    /// `Config` if the client wants to be told more; a folder is made.
    pub fn open(&self) -> Result<Bucket, ConnectError> {
        let address = self.address();
        let wrong = |e: &dyn std::fmt::Display| ConnectError::Config(format!("{address}: {e}"));
        let retry = RetryConfig {
            max_retries: RETRIES_MAX,
            retry_timeout: Duration::from_millis(RETRY_MS_MAX),
            ..RetryConfig::default()
        };
        let prefix = ObjectPath::from_url_path(self.url.path()).map_err(|e| wrong(&e))?;
        let (store, prefix): (Box<dyn ObjectStore>, ObjectPath) =
            match self.scheme().map_err(|e| wrong(&e))? {
                Scheme::Folder(folder) => {
                    let made = std::fs::create_dir_all(&folder);
                    made.map_err(|e| ConnectError::Unavailable(format!("{address}: {e}")))?;
                    let store = LocalFileSystem::new_with_prefix(folder).map_err(|e| wrong(&e))?;
                    (Box::new(store.with_fsync(true)), ObjectPath::default())
                }
                Scheme::S3 => {
                    let mut builder =
                        AmazonS3Builder::from_env().with_url(self.url.as_str()).with_retry(retry);
                    for (key, value) in &self.options {
                        builder = builder.with_config(key.parse().map_err(|e| wrong(&e))?, value);
                    }
                    (Box::new(builder.build().map_err(|e| wrong(&e))?), prefix)
                }
                Scheme::CloudStorage => {
                    let mut builder =
                        GoogleCloudStorageBuilder::from_env().with_url(self.url.as_str()).with_retry(retry);
                    for (key, value) in &self.options {
                        builder = builder.with_config(key.parse().map_err(|e| wrong(&e))?, value);
                    }
                    (Box::new(builder.build().map_err(|e| wrong(&e))?), prefix)
                }
            };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|e| ConnectError::Failed(format!("{address}: no runtime: {e}")))?;
        Ok(Bucket { store, prefix, runtime, address })
    }
}

/// See the module's documentation. Blocks the thread that calls; names are relative to the URL, with `/` between their parts.
#[derive(Debug)]
pub struct Bucket {
    store: Box<dyn ObjectStore>,
    prefix: ObjectPath,
    runtime: Runtime,
    address: String,
}

impl Bucket {
    /// Writes an object that is not there yet; durable when it returns. `false`: there is one of this name.
    ///
    /// # Errors
    /// `Unavailable` if it may work later, `Config` if the service refuses.
    pub fn put_new(&self, name: &str, bytes: Vec<u8>) -> Result<bool, ConnectError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.runtime.block_on(self.store.put_opts(&self.path(name), bytes.into(), options)) {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(e) => Err(self.failed("write", name, &e)),
        }
    }

    /// The whole object; `None` if there is none of this name.
    ///
    /// # Errors
    /// As [`put_new`](Self::put_new).
    pub fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ConnectError> {
        let path = self.path(name);
        match self.runtime.block_on(async { self.store.get(&path).await?.bytes().await }) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.failed("read", name, &e)),
        }
    }

    /// The names in a folder, in order.
    ///
    /// # Errors
    /// As [`put_new`](Self::put_new).
    pub fn list(&self, folder: &str) -> Result<Vec<String>, ConnectError> {
        let path = self.path(folder);
        let listed = self.runtime.block_on(self.store.list(Some(&path)).try_collect::<Vec<_>>());
        let listed = listed.map_err(|e| self.failed("list", folder, &e))?;
        let below = |o: object_store::ObjectMeta| {
            let rest: Vec<_> = o.location.prefix_match(&path)?.collect();
            Some(rest.iter().map(AsRef::as_ref).collect::<Vec<&str>>().join("/"))
        };
        let mut names: Vec<String> = listed.into_iter().filter_map(below).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Deletes an object; fine if there is none.
    ///
    /// # Errors
    /// As [`put_new`](Self::put_new).
    pub fn delete(&self, name: &str) -> Result<(), ConnectError> {
        match self.runtime.block_on(self.store.delete(&self.path(name))) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.failed("delete", name, &e)),
        }
    }

    /// Its URL, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    fn path(&self, name: &str) -> ObjectPath {
        self.prefix.parts().chain(ObjectPath::from(name).parts()).collect()
    }

    fn failed(&self, doing: &str, name: &str, e: &Error) -> ConnectError {
        let text = format!("{}: cannot {doing} {name}: {}", self.address, causes(e));
        match e {
            Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
            | Error::InvalidPath { .. }
            | Error::UnknownConfigurationKey { .. } => ConnectError::Config(text),
            // Of a listing the client says in words only that the service refuses it.
            Error::Generic { .. }
                if ["status code: 401", "status code: 403"].iter().any(|s| text.contains(s)) =>
            {
                ConnectError::Config(text)
            }
            _ => ConnectError::Unavailable(text),
        }
    }
}

/// What it says, and what it was caused by where that says more.
fn causes(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(dir: &std::path::Path) -> Bucket {
        Location::new(&format!("file://{}", dir.display()), Vec::new()).unwrap().open().unwrap()
    }

    #[test]
    fn an_object_is_written_once_and_stays_as_it_is() {
        let tmp = tempfile::tempdir().unwrap();
        let bucket = folder(&tmp.path().join("a/b"));
        assert_eq!(bucket.get("snapshots/1.json").unwrap(), None);
        assert_eq!(bucket.list("snapshots").unwrap(), [""; 0]);
        assert!(bucket.put_new("snapshots/2.json", b"two".to_vec()).unwrap());
        assert!(bucket.put_new("snapshots/1.json", b"one".to_vec()).unwrap());
        assert!(bucket.put_new("other/1.json", b"other".to_vec()).unwrap());
        assert!(!bucket.put_new("snapshots/1.json", b"another".to_vec()).unwrap());
        assert_eq!(bucket.get("snapshots/1.json").unwrap().unwrap(), b"one");
        assert_eq!(bucket.list("snapshots").unwrap(), ["1.json", "2.json"]);
        bucket.delete("snapshots/1.json").unwrap();
        bucket.delete("snapshots/1.json").unwrap();
        assert_eq!(folder(&tmp.path().join("a/b")).list("snapshots").unwrap(), ["2.json"]);
    }

    #[test]
    fn a_url_that_leads_nowhere_is_refused_with_what_would_be_right() {
        let refused = |url: &str, options: &[(&str, &str)]| {
            let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let problem = Location::new(url, options).map(|l| l.address()).unwrap_err();
            format!("{}; {}", problem.message, problem.help)
        };
        assert!(refused("backup", &[]).starts_with("that is no URL"), "{}", refused("backup", &[]));
        assert!(refused("ftp://host/x", &[]).contains("`ftp:`"));
        assert!(refused("file://host/x", &[]).contains("three slashes"));
        assert!(refused("s3://key:secret@bucket/x", &[]).contains("secret does not belong"));
        assert!(refused("file:///x", &[("region", "eu")]).contains("no option `region`"));
        assert!(refused("s3://bucket/x", &[("regoin", "eu")]).contains("no option `regoin`"));
        let options = vec![("secret_access_key".to_owned(), "hush".to_owned())];
        let s3 = Location::new("s3://bucket/x/", options).unwrap();
        assert_eq!((s3.address(), format!("{s3:?}").contains("hush")), ("s3://bucket/x".to_owned(), false));
    }
}
