//! What a partition is known by across restarts (SEMANTICS 2): as it stands in the log of epochs.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What identifies a partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PartitionIdentity {
    /// A file, or what a source has but one of.
    File(FileIdentity),
    /// A partition of a topic.
    Topic(KafkaIdentity),
}

impl PartitionIdentity {
    /// Of a file.
    #[must_use]
    pub fn file(&self) -> Option<&FileIdentity> {
        match self {
            PartitionIdentity::File(file) => Some(file),
            PartitionIdentity::Topic(_) => None,
        }
    }

    /// Of a partition of a topic.
    #[must_use]
    pub fn topic(&self) -> Option<&KafkaIdentity> {
        match self {
            PartitionIdentity::File(_) => None,
            PartitionIdentity::Topic(topic) => Some(topic),
        }
    }
}

impl fmt::Display for PartitionIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PartitionIdentity::File(file) => f.write_str(&file.path),
            PartitionIdentity::Topic(topic) => topic.fmt(f),
        }
    }
}

/// What identifies a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Path when last seen; "-" for stdin.
    pub path: String,
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Hash of the first bytes of the file (of the file itself, before decompression).
    pub head_hash: u64,
    /// How many bytes `head_hash` covers, at most 1024.
    pub head_len: u64,
}

impl FileIdentity {
    /// Of what is no file, and of which there is but one.
    #[must_use]
    pub fn only(name: &str) -> FileIdentity {
        FileIdentity { path: name.into(), device: 0, inode: 0, head_hash: 0, head_len: 0 }
    }
}

/// What identifies a partition of a topic.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct KafkaIdentity {
    /// The id that the cluster gave itself: the same address may come to be another cluster.
    pub cluster: String,
    /// The topic's name.
    pub topic: String,
    /// The partition's number.
    pub partition: i32,
}

impl KafkaIdentity {
    /// Whether both have one name; the clusters may be different ones.
    #[must_use]
    pub fn has_name_of(&self, other: &KafkaIdentity) -> bool {
        (&self.topic, self.partition) == (&other.topic, other.partition)
    }
}

impl fmt::Display for KafkaIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_read_as_what_was_written() {
        let file = r#"{"path":"a.log","device":1,"inode":2,"head_hash":18446744073709551615,"head_len":4}"#;
        let topic = r#"{"cluster":"x","topic":"clicks","partition":3}"#;
        for (text, shown, is_file) in [(file, "a.log", true), (topic, "clicks/3", false)] {
            let identity: PartitionIdentity = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&identity).unwrap(), text);
            assert_eq!((identity.to_string().as_str(), identity.file().is_some()), (shown, is_file));
            assert_eq!(identity.topic().is_some(), !is_file);
        }
    }
}
