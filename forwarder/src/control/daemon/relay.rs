//! From the threads of the control socket to the control thread, which alone knows the state.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::control::api::server::{Answer, ControlHandler};
use crate::control::api::{Object, Request, Response, ShowRequest};
use crate::control::netdev::KernelDevice;
use crate::control::netdev::details::Details;
use crate::control::netdev::nic;
use crate::worker::slow_path::Bell;

/// Requests waiting at most; the server serves fewer clients than this.
const WAITING: usize = 64;
/// The control thread answers in far less, unless it is reading the tables again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A request and where its answer goes.
pub struct Pending {
    /// What is asked.
    pub request: Request,
    /// Devices by ifindex, where the request is for their details: reading them takes many system
    /// calls, and the control thread has other things to do.
    pub details: BTreeMap<u32, Details>,
    answer: Sender<Answer>,
}

impl Pending {
    /// Sends the answer; the asker may be gone.
    pub fn answer(self, answer: Answer) {
        let _ = self.answer.send(answer);
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

/// The devices that a request wants to know everything of.
fn read_details(request: &Request) -> io::Result<BTreeMap<u32, Details>> {
    let Request::Show(ShowRequest { object: Object::Link, filter, details: true, .. }) = request
    else {
        return Ok(BTreeMap::new());
    };
    let wanted = |nic: &nic::Nic| {
        filter.dev.as_ref().is_none_or(|dev| *dev == nic.name) && (!filter.up || nic.is_up())
    };
    let mut found = BTreeMap::new();
    for nic in nic::read()?.into_iter().filter(wanted) {
        let ifindex = nic.ifindex;
        let device = KernelDevice { name: nic.name, ifindex };
        found.extend(Details::read(&device)?.map(|details| (ifindex, details)));
    }
    Ok(found)
}

impl ControlHandler for Relay {
    fn handle(&self, request: Request) -> Answer {
        let (answer, result) = bounded(1);
        let details = match read_details(&request) {
            Ok(details) => details,
            Err(error) => return Response::error(format!("link show: {error}")).into(),
        };
        let pending = Pending { request, details, answer };
        let sent = self.pending.send_timeout(pending, ANSWER_TIMEOUT);
        self.bell.ring();
        if sent.is_err() {
            return Response::error("the control thread is busy or stopping; try again").into();
        }
        result
            .recv_timeout(ANSWER_TIMEOUT)
            .unwrap_or_else(|_| Response::error("the daemon is stopping").into())
    }
}
