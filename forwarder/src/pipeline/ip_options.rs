//! IPv4 options (RFC 791 §3.1, RFC 1812 §5.2.4): `ip_options_compile`, `ip_forward_options`,
//! `ip_options_echo` and `ip_options_fragment` of the kernel.
//!
//! Unlike the kernel's, this compilation does not write into the packet: it changes a copy of the
//! options, which is written to the packet when it is forwarded, or to the quote of an ICMP error when it
//! is rejected. A punted packet is therefore as received.

use super::inet_addr::{fib_compute_spec_dst, is_unicast_elsewhere};
use crate::tables::{Link, Tables};
use crate::wire::ipv4::{HEADER_LEN_MAX, HEADER_LEN_MIN};
use crate::wire::ipv4_option::OptionKind;

/// Longest area of options, octets.
pub(super) const OPTIONS_MAX: usize = HEADER_LEN_MAX - HEADER_LEN_MIN;

/// IPOPT_TS_*: what the timestamp option records.
const TS_TSONLY: u8 = 0;
const TS_TSANDADDR: u8 = 1;
const TS_PRESPEC: u8 = 3;

/// Inputs of options processing other than the packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct OptionsContext<'a> {
    pub tables: &'a Tables,
    /// The interface that received the packet.
    pub dev: &'a Link,
    pub saddr: u32,
    /// Milliseconds since midnight UTC (`inet_current_timestamp`).
    pub timestamp_ms: u32,
}

/// `struct ip_options`: the options of one packet, and their positions. Offsets are octets from the start
/// of the options; lengths are in the options themselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct IpOptions {
    octets: [u8; OPTIONS_MAX],
    len: usize,
    rr: Option<usize>,
    ts: Option<usize>,
    pub source_route: bool,
    pub router_alert: bool,
    /// Needs the kernel's label database.
    pub cipso: bool,
    rr_needaddr: bool,
    ts_needaddr: bool,
    ts_needtime: bool,
    /// The copy differs from the packet, other than by what [`Self::record_route`] adds.
    is_changed: bool,
}

impl IpOptions {
    fn new(octets: &[u8]) -> IpOptions {
        let len = octets.len().min(OPTIONS_MAX);
        let mut options = IpOptions {
            octets: [0; OPTIONS_MAX],
            len,
            rr: None,
            ts: None,
            source_route: false,
            router_alert: false,
            cipso: false,
            rr_needaddr: false,
            ts_needaddr: false,
            ts_needtime: false,
            is_changed: false,
        };
        options.octets[..len].copy_from_slice(&octets[..len]);
        options
    }

    /// `ip_options_compile`. An error is the pointer of a Parameter Problem; the options parsed before it
    /// are returned with it.
    pub fn compile(octets: &[u8], context: &OptionsContext<'_>) -> (IpOptions, Result<(), u8>) {
        let mut options = IpOptions::new(octets);
        let result = options.walk(context);
        // Pointers count from the start of the IP header.
        (options, result.map_err(|at| (HEADER_LEN_MIN + at) as u8))
    }

    fn walk(&mut self, context: &OptionsContext<'_>) -> Result<(), usize> {
        let mut at = 0;
        while at < self.len {
            match OptionKind(self.octets[at]) {
                OptionKind::EOL => {
                    let rest = &mut self.octets[at + 1..self.len];
                    self.is_changed |= rest.iter().any(|&octet| octet != 0);
                    rest.fill(0);
                    return Ok(());
                }
                OptionKind::NOP => {
                    at += 1;
                    continue;
                }
                _ => {}
            }
            let left = self.len - at;
            if left < 2 {
                return Err(at);
            }
            let len = usize::from(self.octets[at + 1]);
            if len < 2 || len > left {
                return Err(at);
            }
            self.option(at, len, context)?;
            at += len;
        }
        Ok(())
    }

    /// Processes one option of `len` octets, all of them present.
    fn option(&mut self, at: usize, len: usize, context: &OptionsContext<'_>) -> Result<(), usize> {
        match OptionKind(self.octets[at]) {
            OptionKind::SSRR | OptionKind::LSRR => {
                if len < 3 {
                    return Err(at + 1);
                }
                if self.octets[at + 2] < 4 {
                    return Err(at + 2);
                }
                // RFC 1812 §5.2.4.1: at most one.
                if self.source_route {
                    return Err(at);
                }
                self.source_route = true;
            }
            OptionKind::RR => self.record_route(at, len, context)?,
            OptionKind::TS => self.timestamp(at, len, context)?,
            OptionKind::RA => {
                if len < 4 {
                    return Err(at + 1);
                }
                self.router_alert |= self.octets[at + 2] == 0 && self.octets[at + 3] == 0;
            }
            OptionKind::CIPSO => self.cipso = true,
            _ => {}
        }
        Ok(())
    }

    /// RFC 1812 §5.2.4.2. Our address is filled in when the outgoing interface is known.
    fn record_route(
        &mut self,
        at: usize,
        len: usize,
        context: &OptionsContext<'_>,
    ) -> Result<(), usize> {
        if self.rr.is_some() {
            return Err(at);
        }
        if len < 3 {
            return Err(at + 1);
        }
        let pointer = usize::from(self.octets[at + 2]);
        if pointer < 4 {
            return Err(at + 2);
        }
        if pointer <= len {
            if pointer + 3 > len {
                return Err(at + 2);
            }
            self.put_addr(at + pointer - 1, spec_dst(context));
            self.octets[at + 2] += 4;
            self.rr_needaddr = true;
            self.is_changed = true;
        }
        self.rr = Some(at);
        Ok(())
    }

    /// RFC 1812 §5.2.4.3.
    fn timestamp(
        &mut self,
        at: usize,
        len: usize,
        context: &OptionsContext<'_>,
    ) -> Result<(), usize> {
        if self.ts.is_some() {
            return Err(at);
        }
        if len < 4 {
            return Err(at + 1);
        }
        let pointer = usize::from(self.octets[at + 2]);
        if pointer < 5 {
            return Err(at + 2);
        }
        let flag = self.octets[at + 3] & 0x0f;
        if pointer <= len {
            if pointer + 3 > len {
                return Err(at + 2);
            }
            self.stamp(at, len, context)?;
        } else if flag != TS_PRESPEC {
            // No room is left: increment the overflow count.
            if self.octets[at + 3] >> 4 == 15 {
                return Err(at + 3);
            }
            self.octets[at + 3] += 0x10;
            self.is_changed = true;
        }
        self.ts = Some(at);
        Ok(())
    }

    /// Writes a timestamp; the option has room for four octets.
    fn stamp(&mut self, at: usize, len: usize, context: &OptionsContext<'_>) -> Result<(), usize> {
        let pointer = usize::from(self.octets[at + 2]);
        let flag = self.octets[at + 3] & 0x0f;
        let place = at + pointer - 1;
        let time_at = match flag {
            TS_TSONLY => place,
            TS_TSANDADDR | TS_PRESPEC if pointer + 7 > len => return Err(at + 2),
            TS_TSANDADDR => {
                self.put_addr(place, spec_dst(context));
                self.ts_needaddr = true;
                place + 4
            }
            // Only the router whose address is listed writes its timestamp.
            TS_PRESPEC if is_unicast_elsewhere(context.tables, self.addr(place)) => return Ok(()),
            TS_PRESPEC => place + 4,
            _ => return Ok(()),
        };
        self.put_addr(time_at, context.timestamp_ms);
        self.octets[at + 2] += if flag == TS_TSONLY { 4 } else { 8 };
        self.ts_needtime = true;
        self.is_changed = true;
        Ok(())
    }

    /// The options as compiled.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// `ip_forward_options`: the options of the forwarded packet, with `our_addr` recorded (the address
    /// of the outgoing interface, computed only if needed). `None`: they are as received.
    pub fn forwarded(&mut self, our_addr: impl FnOnce() -> u32) -> Option<&[u8]> {
        if let Some(at) = self.rr.filter(|_| self.rr_needaddr) {
            let pointer = usize::from(self.octets[at + 2]);
            self.put_addr(at + pointer - 5, our_addr());
        }
        self.is_changed.then_some(&self.octets[..self.len])
    }

    /// `ip_options_echo` and `ip_options_build`: the options of an ICMP error about the packet, with the
    /// time and `saddr`, the error's source, recorded. `None`: the kernel would send no error.
    pub fn echo(&self, saddr: u32, context: &OptionsContext<'_>) -> Option<Echo> {
        let mut echo = Echo { octets: [0; OPTIONS_MAX], len: 0 };
        if let Some(at) = self.rr {
            let (to, len) = echo.copy(&self.octets, at);
            let pointer = usize::from(echo.octets[to + 2]);
            if self.rr_needaddr && pointer <= len {
                if pointer + 3 > len {
                    return None;
                }
                echo.put(to + pointer - 1, saddr);
                echo.octets[to + 2] += 4;
            }
        }
        if let Some(at) = self.ts {
            let (to, len) = echo.copy(&self.octets, at);
            self.echo_timestamp(&mut echo, to, len, saddr, context)?;
        }
        echo.len = echo.len.next_multiple_of(4);
        Some(echo)
    }

    fn echo_timestamp(
        &self,
        echo: &mut Echo,
        to: usize,
        len: usize,
        saddr: u32,
        context: &OptionsContext<'_>,
    ) -> Option<()> {
        let mut pointer = usize::from(echo.octets[to + 2]);
        if pointer > len {
            return Some(());
        }
        if self.ts_needaddr {
            if pointer + 3 > len {
                return None;
            }
            echo.put(to + pointer - 1, saddr);
            pointer += 4;
        }
        if self.ts_needtime {
            if pointer + 3 > len {
                return None;
            }
            if echo.octets[to + 3] & 0x0f != TS_PRESPEC {
                echo.put(to + pointer - 1, context.timestamp_ms);
                pointer += 4;
            } else if pointer + 7 <= len
                && !is_unicast_elsewhere(context.tables, echo.get(to + pointer - 1))
            {
                echo.put(to + pointer + 3, context.timestamp_ms);
                pointer += 8;
            }
        }
        echo.octets[to + 2] = pointer as u8;
        Some(())
    }

    fn addr(&self, at: usize) -> u32 {
        get(&self.octets, at)
    }

    fn put_addr(&mut self, at: usize, addr: u32) {
        put(&mut self.octets, at, addr);
    }
}

fn spec_dst(context: &OptionsContext<'_>) -> u32 {
    fib_compute_spec_dst(context.tables, context.dev, context.saddr)
}

fn get(octets: &[u8], at: usize) -> u32 {
    let word = octets.get(at..).and_then(|octets| octets.first_chunk::<4>());
    u32::from_be_bytes(word.copied().unwrap_or_default())
}

fn put(octets: &mut [u8], at: usize, word: u32) {
    if let Some(octets) = octets.get_mut(at..at + 4) {
        octets.copy_from_slice(&word.to_be_bytes());
    }
}

/// The options of an ICMP error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Echo {
    octets: [u8; OPTIONS_MAX],
    len: usize,
}

impl Echo {
    /// The octets, a multiple of four.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..self.len]
    }

    /// Appends a copy of the option at `at`; returns its new position and its length. Options always fit,
    /// for they come from an area of the same size.
    fn copy(&mut self, from: &[u8; OPTIONS_MAX], at: usize) -> (usize, usize) {
        let (to, len) = (self.len, usize::from(from[at + 1]));
        self.octets[to..to + len].copy_from_slice(&from[at..at + len]);
        self.len += len;
        (to, len)
    }

    fn get(&self, at: usize) -> u32 {
        get(&self.octets, at)
    }

    fn put(&mut self, at: usize, word: u32) {
        put(&mut self.octets, at, word);
    }
}

/// `ip_options_fragment`: turns the options of the first fragment into those of later ones by replacing
/// options without the copied flag by no-operations.
pub(super) fn ip_options_fragment(octets: &mut [u8]) {
    let mut at = 0;
    while let Some(&kind) = octets.get(at) {
        let kind = OptionKind(kind);
        match kind {
            OptionKind::EOL => return,
            OptionKind::NOP => {
                at += 1;
                continue;
            }
            _ => {}
        }
        let len = octets.get(at + 1).copied().map_or(0, usize::from);
        let Some(option) = octets.get_mut(at..at + len).filter(|_| len >= 2) else { return };
        if !kind.copied() {
            option.fill(OptionKind::NOP.0);
        }
        at += len;
    }
}
