//! Begins and ends traces on a worker.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::ask::{CallTimeouts, ask};
use super::handle::Command;
use crate::trace::{Session, Traces};

/// Begins and ends traces on a worker; may be used by any thread.
#[derive(Debug)]
pub struct TraceHandle<I> {
    pub(super) commands: Sender<Command<I>>,
}

impl<I> TraceHandle<I> {
    /// Begins a trace. `None`: the worker has ended, did not respond within `timeout` (and ends the trace if it
    /// begins it later), or has [`TRACES_MAX`](crate::trace::traces::TRACES_MAX) traces already.
    pub fn attach(&self, session: Session, timeout: Duration) -> Option<()> {
        let id = session.id();
        let undo = move |traces: &mut Traces, refused: Option<Session>| {
            if refused.is_none() {
                traces.detach(id);
            }
        };
        let refused = ask(&self.commands, CallTimeouts::brief(timeout), |reply| {
            Command::Traces(Box::new(move |traces| {
                if let Some(unwanted) = reply.run(|| traces.attach(session)) {
                    undo(traces, unwanted);
                }
            }))
        });
        refused.ok()?.is_none().then_some(())
    }

    /// Ends a trace; its records have been handed over when this returns. `None`: as for [`Self::attach`], or
    /// there is no such trace. A worker that does not respond in time ends it later.
    pub fn detach(&self, id: u64, timeout: Duration) -> Option<()> {
        let (answer, result) = bounded(1);
        let deadline = Instant::now() + timeout;
        let command = Command::Traces(Box::new(move |traces| drop(answer.send(traces.detach(id)))));
        self.commands.send_deadline(command, deadline).ok()?;
        // Its memory is freed here, not by the worker.
        result.recv_deadline(deadline).ok()?.map(drop)
    }
}
