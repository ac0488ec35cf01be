//! From the threads of the control socket to the control thread, which alone knows the state.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::control::api::{Request, Response};
use crate::control::server::ControlHandler;
use crate::worker::slow_path::Bell;

/// Requests waiting at most; the server serves fewer clients than this.
const WAITING: usize = 64;
/// The control thread answers in far less, unless it is reading the tables again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A request and where its answer goes.
pub struct Pending {
    /// What is asked.
    pub request: Request,
    answer: Sender<Response>,
}

impl Pending {
    /// Sends the answer; the asker may be gone.
    pub fn answer(self, response: Response) {
        let _ = self.answer.send(response);
    }
}

/// The server's end.
pub struct Relay {
    pending: Sender<Pending>,
    bell: Arc<Bell>,
}

/// Makes both ends.
pub fn relay(bell: Arc<Bell>) -> (Relay, Receiver<Pending>) {
    let (pending, receiver) = bounded(WAITING);
    (Relay { pending, bell }, receiver)
}

impl ControlHandler for Relay {
    fn handle(&self, request: Request) -> Response {
        let (answer, result) = bounded(1);
        let sent = self.pending.send_timeout(Pending { request, answer }, ANSWER_TIMEOUT);
        self.bell.ring();
        if sent.is_err() {
            return Response::error("the control thread is busy or stopping; try again");
        }
        result
            .recv_timeout(ANSWER_TIMEOUT)
            .unwrap_or_else(|_| Response::error("the daemon is stopping"))
    }
}
