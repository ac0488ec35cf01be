//! tcpdump's filter language, compiled by libpcap for Ethernet frames.
//!
//! Not used in the forwarding process: libpcap resolves names, and its parser is C. `ferroute capture`
//! compiles, and sends the program.

use pcap::{Capture, Linktype};

use super::Insn;

/// libpcap rejects a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the filter `{filter}` does not compile: {why}; see man pcap-filter for the syntax")]
pub struct CompileError {
    filter: String,
    why: String,
}

/// Compiles a filter.
///
/// # Errors
/// libpcap's message.
pub fn compile(filter: &str) -> Result<Vec<Insn>, CompileError> {
    let failed = |why: String| CompileError { filter: filter.to_owned(), why };
    let said = |error: pcap::Error| match error {
        pcap::Error::PcapError(why) => failed(why),
        other => failed(other.to_string()),
    };
    let dead = Capture::dead(Linktype::ETHERNET).map_err(said)?;
    let program = dead.compile(filter, true).map_err(said)?;
    let insns = program.get_instructions().iter();
    // The crate shows an instruction's four fields only as text.
    insns.map(|insn| parse(&insn.to_string())).collect::<Option<_>>().ok_or_else(|| {
        failed("libpcap's program cannot be parsed; this is a bug in ferroute".to_owned())
    })
}

fn parse(text: &str) -> Option<Insn> {
    let mut words = text.split(' ');
    let insn = Insn {
        code: words.next()?.parse().ok()?,
        jt: words.next()?.parse().ok()?,
        jf: words.next()?.parse().ok()?,
        k: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(insn)
}
