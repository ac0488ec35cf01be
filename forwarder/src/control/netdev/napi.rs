//! The netdev family of generic netlink (Documentation/netlink/specs/netdev.yaml): NAPI instances
//! with their interrupts and settings (Linux 6.8; settings 6.13), and the NAPI instance of each
//! queue.

use std::io;

use netlink_sys::protocols::NETLINK_GENERIC;
use serde::{Deserialize, Serialize};

use crate::control::netdev::nic::find;
use crate::control::netlink::message::{Attr, Attrs, Message, Request};
use crate::control::netlink::query::{GENL_HEADER, NlSock};

const CMD_QUEUE_GET: u8 = 10;
const CMD_NAPI_GET: u8 = 11;
const CMD_NAPI_SET: u8 = 14;

const NAPI_IFINDEX: u16 = 1;
const NAPI_ID: u16 = 2;
const NAPI_IRQ: u16 = 3;
const NAPI_DEFER_HARD_IRQS: u16 = 5;
const NAPI_GRO_FLUSH_TIMEOUT: u16 = 6;
const NAPI_IRQ_SUSPEND_TIMEOUT: u16 = 7;

const QUEUE_ID: u16 = 1;
const QUEUE_IFINDEX: u16 = 2;
const QUEUE_TYPE: u16 = 3;
const QUEUE_NAPI_ID: u16 = 4;

/// A NAPI instance, which polls one or more queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Napi {
    /// The kernel's id.
    pub id: u32,
    /// Its interrupt, if the driver reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub irq: Option<u32>,
    /// Its settings; `None`: the kernel has them per device only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settings: Option<NapiSettings>,
}

/// Settings of a NAPI instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NapiSettings {
    /// Number of empty polls before the interrupt is enabled again.
    pub defer_hard_irqs: u32,
    /// Nanoseconds between these polls.
    pub gro_flush_timeout: u64,
    /// Nanoseconds for which the interrupt stays disabled while an epoll user finds packets.
    pub irq_suspend_timeout: u64,
}

/// A queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// `rx` or `tx`.
    pub kind: String,
    /// From 0.
    pub id: u32,
    /// The NAPI instance that polls it, if the driver reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub napi_id: Option<u32>,
}

/// The NAPI instances of a device by id; empty if the kernel does not report them.
///
/// # Errors
/// The kernel's error.
pub fn instances(ifindex: u32) -> io::Result<Vec<Napi>> {
    let mut found = dump(CMD_NAPI_GET, NAPI_IFINDEX, ifindex, |attrs| {
        let number = |kind| find(attrs, kind)?.u32();
        (number(NAPI_IFINDEX)? == ifindex).then_some(())?;
        let settings = number(NAPI_DEFER_HARD_IRQS).map(|defer_hard_irqs| NapiSettings {
            defer_hard_irqs,
            gro_flush_timeout: uint(attrs, NAPI_GRO_FLUSH_TIMEOUT),
            irq_suspend_timeout: uint(attrs, NAPI_IRQ_SUSPEND_TIMEOUT),
        });
        Some(Napi { id: number(NAPI_ID)?, irq: number(NAPI_IRQ), settings })
    })?;
    found.sort_by_key(|napi| napi.id);
    Ok(found)
}

/// The queues of a device, RX first; empty if the kernel does not report them.
///
/// # Errors
/// The kernel's error.
pub fn queues(ifindex: u32) -> io::Result<Vec<Queue>> {
    let mut found = dump(CMD_QUEUE_GET, QUEUE_IFINDEX, ifindex, |attrs| {
        let number = |kind| find(attrs, kind)?.u32();
        (number(QUEUE_IFINDEX)? == ifindex).then_some(())?;
        let kind = if number(QUEUE_TYPE)? == 0 { "rx" } else { "tx" }.to_owned();
        Some(Queue { kind, id: number(QUEUE_ID)?, napi_id: number(QUEUE_NAPI_ID) })
    })?;
    found.sort_by(|a, b| (&a.kind, a.id).cmp(&(&b.kind, b.id)));
    Ok(found)
}

/// Changes the settings of a NAPI instance.
///
/// # Errors
/// The kernel's error: ENOENT if the instance does not exist (any more).
pub fn set(id: u32, settings: NapiSettings) -> io::Result<()> {
    let mut socket = NlSock::open(NETLINK_GENERIC)?;
    let family = socket.family("netdev")?;
    let request = |flags| {
        Request::new(family, flags, &[CMD_NAPI_SET, 1, 0, 0])
            .attr(NAPI_ID, &id.to_ne_bytes())
            .attr(NAPI_DEFER_HARD_IRQS, &settings.defer_hard_irqs.to_ne_bytes())
            .attr(NAPI_GRO_FLUSH_TIMEOUT, &settings.gro_flush_timeout.to_ne_bytes())
            .attr(NAPI_IRQ_SUSPEND_TIMEOUT, &settings.irq_suspend_timeout.to_ne_bytes())
    };
    socket.get(request, |_| Some(())).map(drop)
}

/// Dumps objects of the family; empty if the kernel has no such family or command.
fn dump<T>(
    command: u8,
    by: u16,
    ifindex: u32,
    parse: impl Fn(Attrs<'_>) -> Option<T>,
) -> io::Result<Vec<T>> {
    let mut socket = NlSock::open(NETLINK_GENERIC)?;
    let family = match socket.family("netdev") {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        family => family?,
    };
    let request =
        |flags| Request::new(family, flags, &[command, 1, 0, 0]).attr(by, &ifindex.to_ne_bytes());
    let parse = |message: &Message<'_>| parse(message.attrs(GENL_HEADER));
    match socket.dump_by(request, parse) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        found => found,
    }
}

/// A netlink `uint`: 4 or 8 octets.
fn uint(attrs: Attrs<'_>, kind: u16) -> u64 {
    let value = |attr: Attr<'_>| match <[u8; 8]>::try_from(attr.value) {
        Ok(octets) => Some(u64::from_ne_bytes(octets)),
        Err(_) => attr.u32().map(u64::from),
    };
    find(attrs, kind).and_then(value).unwrap_or(0)
}
