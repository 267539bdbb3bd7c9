//! Session revisions as JSON lines on standard output, for pipes and a quick look.
//!
//! Owns nothing that survives the process: what went into a pipe cannot be cut back, so an epoch resent
//! after a crash may show its rows twice (a reader keeps the greatest revision per id, SEMANTICS 26).

use super::{Sink, TakenBack, line};
use crate::{ConnectError, Cursor};
use std::io::{ErrorKind, Write};
use tidemill_engine::outbox::{Outbox, Stages};

/// Writes JSON lines, in the form of the JSON-lines file, to standard output.
pub struct StdoutSink {
    out: Box<dyn Write + Send>,
    /// Whose sessions, and which; `None`: dead letters.
    sessions: Option<(String, Stages)>,
    cursor: Cursor,
    buf: Vec<u8>,
}

impl StdoutSink {
    /// A sink for a pipeline's revisions with these stages.
    #[must_use]
    pub fn new(pipeline: String, stages: Stages) -> StdoutSink {
        StdoutSink::over(Box::new(std::io::stdout()), Some((pipeline, stages)))
    }

    /// A sink for dead letters.
    #[must_use]
    pub fn letters() -> StdoutSink {
        StdoutSink::over(Box::new(std::io::stdout()), None)
    }

    fn over(out: Box<dyn Write + Send>, sessions: Option<(String, Stages)>) -> StdoutSink {
        StdoutSink { out, sessions, cursor: Cursor::default(), buf: Vec::new() }
    }
}

impl Sink for StdoutSink {
    fn open(&mut self, _: u64, stored: Option<Cursor>) -> Result<Option<Cursor>, ConnectError> {
        self.cursor = stored.unwrap_or_default();
        Ok(stored)
    }

    fn witness(&self) -> Result<Option<u64>, ConnectError> {
        Ok(None)
    }

    fn take_back(&mut self, _: u64, _: u64, _: Option<Cursor>) -> Result<TakenBack, ConnectError> {
        Ok(TakenBack::Stays)
    }

    fn deliver(&mut self, outbox: &Outbox<'_>) -> Result<Cursor, ConnectError> {
        if outbox.epoch <= self.cursor.epoch {
            return Ok(self.cursor);
        }
        let out = &mut self.out;
        let written = match &self.sessions {
            Some((pipeline, stages)) => {
                line::each_block(outbox, pipeline, *stages, &mut self.buf, |b| out.write_all(b)).map(drop)
            }
            None => out.write_all(outbox.letters()),
        };
        written.and_then(|()| out.flush()).map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe => ConnectError::Failed("stdout was closed".into()),
            _ => ConnectError::Failed(format!("cannot write to stdout: {e}")),
        })?;
        self.cursor = Cursor { epoch: outbox.epoch, length: 0 };
        Ok(self.cursor)
    }

    fn delete_all(&mut self) -> Result<(), ConnectError> {
        Err(ConnectError::Config(
            "rows written to stdout cannot be taken back; remove the stdout sink from the pipeline, or start over \
             in another data_dir"
                .into(),
        ))
    }

    fn at_least_once(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tidemill_engine::{
        outbox::{SessionRow, Stage},
        time::EventTime,
    };

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, b: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(b);
            Ok(b.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn rows() -> Vec<u8> {
        let mut out = Vec::new();
        for stage in Stage::ALL {
            let time = EventTime::from_ms(1);
            SessionRow {
                id: [stage as u8; 16],
                key: "k",
                start: time,
                end: time,
                events: 1,
                stage,
                reason: None,
                plugin: "p@1",
                fields: "{}",
            }
            .encode(&mut out);
        }
        out
    }

    #[test]
    fn writes_the_stages_asked_for_once_an_epoch() {
        let out = Shared::default();
        let stages = Stages::of(&[Stage::Final, Stage::Retracted]);
        let mut s = StdoutSink::over(Box::new(out.clone()), Some(("p".into(), stages)));
        assert_eq!(s.open(1, None).unwrap(), None);
        let rows = rows();
        for epoch in [1, 1, 2] {
            assert_eq!(s.deliver(&Outbox::new(1, epoch, &rows, b"")).unwrap(), Cursor { epoch, length: 0 });
        }
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        let stages: Vec<_> = text
            .lines()
            .map(|l| {
                serde_json::from_str::<serde_json::Value>(l).unwrap()["stage"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(stages, ["final", "retracted", "final", "retracted"]);
        assert!(s.at_least_once());
        assert!(matches!(s.delete_all(), Err(ConnectError::Config(_))));
    }

    #[test]
    fn a_closed_pipe_is_named() {
        let mut s = StdoutSink::over(Box::new(Closed), Some(("p".into(), Stages::ALL)));
        match s.deliver(&Outbox::new(1, 1, &rows(), b"")) {
            Err(ConnectError::Failed(m)) => assert_eq!(m, "stdout was closed"),
            other => panic!("{other:?}"),
        }
    }
}
