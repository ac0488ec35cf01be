//! A netlink socket for requests of any protocol: dumps and single requests to nf_tables, XFRM,
//! rtnetlink and the generic families. The mirror has sockets of its own, see [`super::rtnl`].

use std::io;

use super::message::{Message, Request};
use super::socket::AskSocket;
pub use super::socket::DumpEnd;
use super::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST};

/// GENL_ID_CTRL, the family that resolves the ids of generic families.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `struct genlmsghdr` in octets.
pub const GENL_HEADER: usize = 4;

/// How often a dump is requested if it is interrupted by changes.
const DUMP_TRIES: usize = 5;

/// How many requests one datagram has. An error, or an event that was asked for, occupies up to some 1 KiB of the receive buffer,
/// which has 208 KiB by default, and is lost when that is full.
const BATCH_MAX: usize = 64;

/// The socket for requests.
#[derive(Debug)]
pub struct NlSock(AskSocket);

impl NlSock {
    /// Opens a socket of a NETLINK_* protocol.
    ///
    /// # Errors
    /// EPROTONOSUPPORT if the kernel has no such protocol.
    pub fn open(protocol: isize) -> io::Result<NlSock> {
        Ok(NlSock(AskSocket::open(protocol)?))
    }

    /// Dumps all objects; `parse` returns what is needed from each message.
    ///
    /// # Errors
    /// As [`NlSock::dump_by`].
    pub fn dump<T>(
        &mut self,
        kind: u16,
        header: &[u8],
        parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        self.dump_by(|flags| Request::new(kind, flags, header), parse)
    }

    /// Dumps all objects that a request selects; `parse` returns what is needed from each message.
    ///
    /// # Errors
    /// The kernel's errno; [`is_interrupted`] if objects changed during every attempt, so that no
    /// reply was complete.
    pub fn dump_by<T>(
        &mut self,
        request: impl Fn(u16) -> Request,
        mut parse: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        until_complete(|| {
            let mut found = Vec::new();
            let request = request(NLM_F_REQUEST | NLM_F_DUMP);
            let end = self.0.exchange("dump", request, |message| found.extend(parse(message)))?;
            Ok((found, end))
        })
    }

    /// Dumps all objects that a request selects, once, without collecting them: calls `each` with every
    /// message.
    ///
    /// # Errors
    /// The kernel's errno; some messages may have been passed on before.
    pub fn dump_each(
        &mut self,
        request: impl FnOnce(u16) -> Request,
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<DumpEnd> {
        Ok(self.0.exchange("dump", request(NLM_F_REQUEST | NLM_F_DUMP), each)?)
    }

    /// Begins a dump whose objects [`NlSock::dump_part`] passes on. Until that has returned the end, the socket
    /// has no other requests.
    ///
    /// # Errors
    /// Errors of sendto(2).
    pub fn begin_dump(&mut self, request: impl FnOnce(u16) -> Request) -> io::Result<()> {
        Ok(self.0.begin("dump", request(NLM_F_REQUEST | NLM_F_DUMP))?)
    }

    /// Calls `each` with every message of the next datagram of the dump: whether it is complete, and whether it was
    /// the last one.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn dump_part(&mut self, each: impl FnMut(&Message<'_>)) -> io::Result<(DumpEnd, bool)> {
        Ok(self.0.receive_part("dump", each)?)
    }

    /// Sends a request for each item, many in one datagram; returns the kernel's answers in that order. `each`: called with the
    /// messages that the kernel sends in addition. `flags`: added to those of the requests.
    pub fn change_all<T>(
        &mut self,
        items: &[T],
        flags: u16,
        request: impl Fn(&T, u16) -> Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> Vec<io::Result<()>> {
        let mut answers = Vec::with_capacity(items.len());
        for batch in items.chunks(BATCH_MAX) {
            // Acknowledgements cost as much as the requests: the last one is sufficient.
            let requests = (1..).zip(batch).map(|(number, item)| {
                let ack = if number == batch.len() { NLM_F_ACK } else { 0 };
                request(item, NLM_F_REQUEST | ack | flags)
            });
            answers.extend(self.0.exchange_all("change", requests.collect(), &mut each));
        }
        answers
    }

    /// The number by which the kernel identifies the socket (nlmsg_pid of events of changes that it requested).
    pub fn port_number(&self) -> Option<u32> {
        self.0.port_number()
    }

    /// Sends one request and parses the reply; `None` if there was none or `parse` returned `None`.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn get<T>(
        &mut self,
        request: impl FnOnce(u16) -> Request,
        parse: impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut found = None;
        self.0.exchange("get", request(NLM_F_REQUEST | NLM_F_ACK), |message| {
            found = found.take().or_else(|| parse(message));
        })?;
        Ok(found)
    }

    /// Overwrites the receive buffer, after replies with secrets.
    pub fn wipe(&mut self) {
        self.0.wipe();
    }

    /// The id of a generic family.
    ///
    /// # Errors
    /// ENOENT if the kernel does not have it.
    pub fn family(&mut self, name: &str) -> io::Result<u16> {
        let request = |flags| {
            Request::new(GENL_ID_CTRL, flags, &[CTRL_CMD_GETFAMILY, 1, 0, 0])
                .attr(CTRL_ATTR_FAMILY_NAME, format!("{name}\0").as_bytes())
        };
        let id = self.get(request, |message| {
            message.attrs(GENL_HEADER).find(|attr| attr.kind == CTRL_ATTR_FAMILY_ID)?.u16()
        })?;
        id.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }
}

/// Repeats a request until a reply is complete.
fn until_complete<T>(mut ask: impl FnMut() -> io::Result<(T, DumpEnd)>) -> io::Result<T> {
    for _ in 0..DUMP_TRIES {
        if let (found, DumpEnd::Complete) = ask()? {
            return Ok(found);
        }
    }
    Err(io::Error::new(
        io::ErrorKind::Interrupted,
        "the dump was interrupted by changes every time",
    ))
}

/// Whether no reply was complete (NLM_F_DUMP_INTR); try again later.
pub fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE};

    #[test]
    fn links_are_dumped_and_a_wrong_request_returns_an_errno() {
        let mut socket = NlSock::open(NETLINK_ROUTE).expect("opens");
        let (rtm_getlink, rtm_newlink) = (18, 16);
        let header = [0; 16];
        let kinds = socket.dump(rtm_getlink, &header, |m| Some(m.kind)).expect("dumps");
        assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == rtm_newlink));
        let request = |flags| {
            let mut header = header;
            header[4..8].copy_from_slice(&0x7fff_fff0u32.to_ne_bytes());
            Request::new(rtm_getlink, flags, &header)
        };
        let error = socket.get(request, |m| Some(m.kind)).expect_err("no such interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }

    #[test]
    fn requests_of_a_batch_are_answered_in_their_order() {
        let mut socket = NlSock::open(NETLINK_ROUTE).expect("opens");
        let rtm_getlink = 18;
        // No interface has the number 0x7fff_fff0; 1 is lo.
        let ifindexes: Vec<u32> =
            (0..200).map(|number| if number % 3 == 0 { 1 } else { 0x7fff_fff0 }).collect();
        let answers = socket.change_all(
            &ifindexes,
            0,
            |ifindex, flags| {
                let mut header = [0; 16];
                header[4..8].copy_from_slice(&ifindex.to_ne_bytes());
                Request::new(rtm_getlink, flags, &header)
            },
            |_| {},
        );
        assert_eq!(answers.len(), ifindexes.len());
        for (ifindex, answer) in ifindexes.iter().zip(answers) {
            let errno = answer.err().and_then(|error| error.raw_os_error());
            assert_eq!(errno, (*ifindex != 1).then_some(libc::ENODEV));
        }
    }

    #[test]
    fn a_dump_that_is_never_complete_is_an_error() {
        let answers = |interrupted: usize| {
            let mut count = 0;
            until_complete(move || {
                count += 1;
                let end =
                    if count > interrupted { DumpEnd::Complete } else { DumpEnd::Interrupted };
                Ok((count, end))
            })
        };
        assert_eq!(answers(DUMP_TRIES - 1).expect("the last is complete"), DUMP_TRIES);
        assert!(is_interrupted(&answers(DUMP_TRIES).expect_err("none is")));
    }

    #[test]
    fn a_generic_family_has_an_id_or_does_not_exist() {
        let mut socket = NlSock::open(NETLINK_GENERIC).expect("opens");
        assert_eq!(socket.family("nlctrl").expect("is always there"), GENL_ID_CTRL);
        let error = socket.family("no-such-family").expect_err("is not there");
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }
}
