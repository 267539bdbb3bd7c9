//! Standard input as a partition, plain or compressed.
//!
//! A thread waits for bytes, since reading a pipe blocks, and hands them over through a bounded channel:
//! [`StdinPartition::read`] never waits, and a slow reader slows the writer of the pipe. Memory: at most
//! [`CHUNKS_MAX`] chunks wait. The thread ends with the input or, at its next chunk, with the partition.
//!
//! A pipe has no past: to resume, the same bytes must be piped again, and those read before are read over.

use super::compression;
use super::framing::{Framer, Supply};
use super::{Block, Framing, Partition, Read};
use crate::ConnectError;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread;

/// What a pipe holds on Linux, so no read gives more.
const CHUNK_BYTES: usize = 64 << 10;

/// Two blocks' worth: the thread fills one while the other is being decoded.
const CHUNKS_MAX: usize = 8;

enum Chunk {
    Bytes(Vec<u8>),
    /// Said explicitly, so that a thread that died is not taken for the end of the input.
    End,
    Failed(io::Error),
}

/// Standard input (or any reader), being read by a thread.
pub struct StdinPartition {
    framer: Framer,
    chunks: Receiver<Chunk>,
}

impl StdinPartition {
    /// Reads standard input. `skip` is the offset to resume at, in decompressed bytes from the start of
    /// the input, which is to be piped again; with `has_header` its first record is the header all the same.
    pub fn new(framing: Framing, has_header: bool, skip: u64) -> Result<Self, ConnectError> {
        Self::from_reader(io::stdin(), framing, has_header, skip)
    }

    /// Reads any reader in the same way.
    pub fn from_reader(
        reader: impl io::Read + Send + 'static,
        framing: Framing,
        has_header: bool,
        skip: u64,
    ) -> Result<Self, ConnectError> {
        let (sender, chunks) = sync_channel(CHUNKS_MAX);
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || {
                let last = match pump(reader, &sender) {
                    Ok(()) => Chunk::End,
                    Err(e) => Chunk::Failed(e),
                };
                // Nobody listens any more when the partition is gone, and nobody needs to.
                let _ = sender.send(last);
            })
            .map_err(|e| ConnectError::Failed(format!("stdin: no thread to read it: {e}")))?;
        Ok(Self { framer: Framer::new(framing, 0).with_header(has_header).resuming_at(skip), chunks })
    }
}

impl Partition for StdinPartition {
    fn read(&mut self, block: &mut Block) -> Result<Read, ConnectError> {
        let chunks = &self.chunks;
        let read = self.framer.fill(block, |bytes, max| {
            let start = bytes.len();
            while bytes.len() - start < max {
                match chunks.try_recv() {
                    Ok(Chunk::Bytes(chunk)) => bytes.extend_from_slice(&chunk),
                    Ok(Chunk::End) => return Ok(Supply::End),
                    Ok(Chunk::Failed(e)) => return Err(e),
                    Err(TryRecvError::Empty) if bytes.len() == start => return Ok(Supply::Nothing),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        return Err(io::Error::other("the thread that reads it has stopped"));
                    }
                }
            }
            Ok(Supply::Bytes)
        });
        let taken = self.framer.taken();
        match (read, self.framer.missed()) {
            (Err(e), _) => Err(ConnectError::Failed(format!(
                "stdin: cannot be read beyond byte {taken} (after decompression): {e}. The whole records \
                 before it have been read. Pipe the complete input again: reading goes on where it stopped."
            ))),
            (Ok(Read::End), Some(offset)) => Err(ConnectError::Conflict(format!(
                "stdin: ended at byte {taken}, but was read up to byte {offset} before. Pipe the same input \
                 again, or start over with --fresh."
            ))),
            (Ok(read), _) => Ok(read),
        }
    }

    /// Unlike a file's, known only once the first record has been read.
    fn header(&self) -> Option<&[u8]> {
        self.framer.header()
    }
}

/// Sends chunks until the end of the input, or until the partition is gone.
fn pump(mut reader: impl io::Read + Send + 'static, sender: &SyncSender<Chunk>) -> io::Result<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while compression::undecided(&head) {
        match reader.read(&mut byte) {
            Ok(0) => break,
            Ok(_) => head.push(byte[0]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    let compression = compression::of(&head);
    let mut decoded = compression::decoder(compression, io::Read::chain(io::Cursor::new(head), reader))?;
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        match decoded.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(n) => {
                // A trickle of short lines must not make eight chunks of 64 KiB out of eight lines.
                chunk.truncate(n);
                chunk.shrink_to_fit();
                if sender.send(Chunk::Bytes(chunk)).is_err() {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
#[path = "stdin_tests.rs"]
mod tests;
