//! Messages on a connection after a capture was granted. The daemon sends messages: one octet of type, the
//! length of the rest in four octets (little-endian), and the rest.
//!
//! The client sends nothing. It closes its writing side when it wants no more, and then gets the remaining
//! copies and [`Message::End`].

use std::io::{self, Write};

use serde::de::DeserializeOwned;

use crate::control::api::{CaptureEnd, CapturePort};

/// Maximum length of a message in octets; a larger one is an error.
const LENGTH_MAX: usize = 64 << 20;
/// Octets before the rest: type and length.
const HEAD: usize = 5;

const PACKETS: u8 = 1;
const PORTS: u8 = 2;
const END: u8 = 3;

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub enum Message<'a> {
    /// Copies, see [`crate::capture::record`]: the oldest of each worker first.
    Packets(&'a [u8]),
    /// The ports have changed: some are gone, back or renamed.
    Ports(Vec<CapturePort>),
    /// Nothing follows.
    End(CaptureEnd),
}

impl Message<'_> {
    /// Writes the message.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        let json;
        let (kind, rest) = match self {
            Message::Packets(packets) => (PACKETS, *packets),
            Message::Ports(ports) => {
                json = serde_json::to_vec(ports)?;
                (PORTS, &json[..])
            }
            Message::End(end) => {
                json = serde_json::to_vec(end)?;
                (END, &json[..])
            }
        };
        to.write_all(&[kind])?;
        to.write_all(&(rest.len() as u32).to_le_bytes())?;
        to.write_all(rest)
    }

    /// The first message in `octets` and its length in octets; `None`: more must be read.
    ///
    /// # Errors
    /// `octets` do not follow this protocol.
    pub fn parse(octets: &[u8]) -> io::Result<Option<(Message<'_>, usize)>> {
        let Some((head, rest)) = octets.split_first_chunk::<HEAD>() else { return Ok(None) };
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > LENGTH_MAX {
            return Err(nonsense(format!("a message of {length} octets")));
        }
        let Some(rest) = rest.get(..length) else { return Ok(None) };
        let message = match head[0] {
            PACKETS => Message::Packets(rest),
            PORTS => Message::Ports(from_json(rest)?),
            END => Message::End(from_json(rest)?),
            other => return Err(nonsense(format!("a message of kind {other}"))),
        };
        Ok(Some((message, HEAD + length)))
    }
}

fn from_json<T: DeserializeOwned>(octets: &[u8]) -> io::Result<T> {
    serde_json::from_slice(octets).map_err(|error| nonsense(error.to_string()))
}

fn nonsense(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("invalid message from the daemon: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire_in_any_pieces() {
        let port = CapturePort { ifname: "eth0".into(), ifindex: 3, mac: [2, 0, 0, 0, 0, 1] };
        let end = CaptureEnd { matched: 7, lost: 2, stopping: true };
        let messages =
            [Message::Packets(&[1, 2, 3]), Message::Ports(vec![port]), Message::End(end)];
        let mut wire = Vec::new();
        messages.iter().for_each(|message| message.write(&mut wire).expect("a vector"));
        let mut at = 0;
        for message in messages {
            let length = (at..).find_map(|end| {
                let parsed = Message::parse(&wire[at..end]).expect("sound");
                parsed.map(|(found, length)| {
                    assert_eq!(found, message);
                    length
                })
            });
            at += length.expect("it is there");
        }
        assert_eq!(at, wire.len());
    }

    #[test]
    fn an_invalid_message_is_an_error_at_once() {
        for wrong in [&[9, 0, 0, 0, 0][..], &[1, 0, 0, 0, 255], &[3, 1, 0, 0, 0, b'x']] {
            assert!(Message::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
