//! Capture filters, compared with libpcap's and the kernel's decisions.
#![no_main]

use arbitrary::Arbitrary;
use ferroute::capture::{Filter, Verdict, compile};
use ferroute::skb::{Burst, SkBuff, Umem};
use ferroute_fuzz::filter::{Term, is_common, kernel, libpcap, program, text};
use libfuzzer_sys::fuzz_target;

/// Maximum octets of a packet: it fits one frame.
const LONGEST: usize = 2000;
/// Packets of the burst that is matched at once: smaller bursts are matched packet by packet.
const BURST: usize = 16;

#[derive(Debug, Arbitrary)]
enum Input {
    /// An expression.
    Text(Vec<Term>, Vec<u8>),
    /// Instructions.
    Program(Vec<(u16, u8, u8, u32)>, Vec<u8>),
}

/// Asserts that a burst has the same result as a single packet, and that no matching packet is excluded for
/// good.
fn burst(filter: &Filter, packet: &[u8], matched: bool) {
    let mut pool = Umem::anonymous(BURST as u32).into_pool();
    let mut burst = Burst::with_capacity(BURST);
    for _ in 0..BURST {
        burst.push(SkBuff::of_octets(&mut pool, packet).expect("a frame")).expect("room");
    }
    let (passed, for_good) = filter.run_burst(burst.as_slice(), &mut Vec::new());
    let all = (1 << BURST) - 1;
    assert_eq!(passed, if matched { all } else { 0 }, "as one by one");
    assert_eq!(passed & for_good, 0, "what passes is not done with");
    burst.drain(BURST).for_each(|skb| pool.kfree_skb(skb));
}

fuzz_target!(|input: Input| match input {
    Input::Text(terms, mut packet) => {
        packet.truncate(LONGEST);
        let text = text(&terms);
        let (Ok(insns), Some(theirs)) = (compile(&text), libpcap(&text, &packet)) else { return };
        let filter = Filter::new(&insns).expect("what libpcap compiles is sound");
        let ours = filter.run(&packet) == Verdict::Match;
        assert_eq!(ours, theirs, "ours, and libpcap's, of `{text}`");
        burst(&filter, &packet, ours);
    }
    Input::Program(insns, mut packet) => {
        packet.truncate(LONGEST);
        let insns = program(&insns);
        let common = is_common(&insns);
        let filter = match Filter::new(&insns) {
            Ok(filter) => filter,
            Err(error) => {
                let taken = common && !insns.is_empty() && kernel(&insns, &packet).is_some();
                assert!(!taken, "the kernel accepts it, Ferroute does not: {error}");
                return;
            }
        };
        let ours = filter.run(&packet) == Verdict::Match;
        burst(&filter, &packet, ours);
        if common
            && !packet.is_empty()
            && let Some(theirs) = kernel(&insns, &packet)
        {
            assert_eq!(ours, theirs, "ours, and the kernel's");
        }
    }
});
